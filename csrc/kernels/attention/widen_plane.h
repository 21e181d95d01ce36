// A plane of a block, keys or values, as floats: for the files that are built once for every instruction set.
// What int8 and int4 codes are scaled by is not in them yet.
#pragma once
#include "core/simd.h"
#include "kv_cache/kv_format.h"

namespace russet {
namespace {

template <typename T>
void widen_row(const T* x, int n, float* y) {
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) store(y + i, load(x + i));
  if (i < n) store(y + i, load_part(x + i, n - i));
}

// The n codes of an int4 row; one more where n is odd.
inline void unpack_row(const uint8_t* x, int n, int8_t* codes) {
  for (int i = 0; i < (n + 1) / 2; ++i) {
    codes[2 * i] = x[i] & 15;
    codes[2 * i + 1] = int8_t(x[i] >> 4);
  }
}

// Rows of n columns to rows of `stride` floats; zero from n on, up to whole vectors.
inline void widen_plane(KvType type, const void* data, int n_rows, int n, float* y, size_t stride) {
  const auto rows = [&]<typename T>(const T* x) {
    for (int r = 0; r < n_rows; ++r, x += n, y += stride) widen_row(x, n, y);
  };
  switch (type) {
    case KvType::f32:
      return rows(static_cast<const float*>(data));
    case KvType::f16:
      return rows(static_cast<const f16*>(data));
    case KvType::bf16:
      return rows(static_cast<const bf16*>(data));
    case KvType::int8:
      return rows(static_cast<const int8_t*>(data));
    case KvType::int4: {
      const uint8_t* x = static_cast<const uint8_t*>(data);
      int8_t codes[kMaxHeadDim + 1];
      for (int r = 0; r < n_rows; ++r, x += (n + 1) / 2, y += stride) {
        unpack_row(x, n, codes);
        widen_row(codes, n, y);
      }
    }
  }
}

}  // namespace
}  // namespace russet
