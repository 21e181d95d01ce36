// Each token's row is first turned into what is stored, vector by vector, and then copied to where it
// belongs: to its row, or element by element down its column, which for many tokens stays in the L1 cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/simd.h"
#include "kernels/kv_store/kv_store.h"

namespace russet {
namespace {

template <typename T>
void round_row(const float* x, int n, T* row) {
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) store(row + i, load(x + i));
  if (i < n) store_part(row + i, load_part(x + i, n - i), n - i);
}

// x = minimum + scale * code, codes at most `most` away from zero
struct Codes {
  float scale, minimum, most;

  void make(const float* x, int n, int8_t* row) const {
    const auto code = [&](Vec v) {
      if (!(scale > 0)) return splat(0);
      return max(splat(-most), min(splat(most), round((v - splat(minimum)) / splat(scale))));
    };
    int i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(row + i, code(load(x + i)));
    if (i < n) store_part(row + i, code(load_part(x + i, n - i)), n - i);
  }
};

struct Range {
  float low, high;
  bool finite;
};

Range range_of(const float* x, int n) {
  Vec low = splat(x[0]), high = low, poison = splat(0);
  const auto see = [&](Vec v) {
    low = min(low, v);
    high = max(high, v);
    poison = fma(v, splat(0), poison);  // 0 times NaN or infinity is NaN, times anything else 0
  };
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) see(load(x + i));
  Range range{-max_of(splat(0) - low), max_of(high), sum(poison) == 0};
  for (; i < n; ++i) {
    range.low = std::min(range.low, x[i]);
    range.high = std::max(range.high, x[i]);
    range.finite = range.finite && x[i] * 0 == 0;
  }
  return range;
}

Codes codes_for(KvType type, const float* x, int n) {
  const auto [low, high, finite] = range_of(x, n);
  Codes codes = type == KvType::int8 ? Codes{std::fabs(std::max(-low, high)) / 127, 0, 127}
                                     : Codes{(high - low) / 15, low, 15};
  if (!finite || codes.scale > std::numeric_limits<float>::max())
    codes = {std::numeric_limits<float>::quiet_NaN(), 0, 0};
  return codes;
}

// Where one token's keys or values go.
struct Place {
  KvType type;
  int head_dim;
  char* plane;
  float *scales, *minima;
  int slot;
  bool by_columns;

  template <typename T>
  void put(const T* row) const {
    T* to = static_cast<T*>(static_cast<void*>(plane));
    const size_t n = size_t(head_dim);
    if (!by_columns) {
      std::copy_n(row, n, to + size_t(slot) * n);
    } else {
      for (size_t c = 0; c < n; ++c) to[c * kBlockTokens + size_t(slot)] = row[c];
    }
  }

  template <typename T>
  void put_floats(const float* x) const {
    T row[kMaxHeadDim];
    round_row(x, head_dim, row);
    put(row);
  }

  void put_codes(const float* x) const {
    int8_t row[kMaxHeadDim + 1];
    const Codes codes = codes_for(type, x, head_dim);
    codes.make(x, head_dim, row);
    scales[slot] = codes.scale;
    if (type == KvType::int8) return put(row);
    minima[slot] = codes.minimum;
    row[head_dim] = 0;
    const size_t n_bytes = (size_t(head_dim) + 1) / 2;
    char* to = plane + size_t(slot) * n_bytes;
    for (size_t i = 0; i < n_bytes; ++i) to[i] = char(row[2 * i] | row[2 * i + 1] << 4);
  }

  void put_token(const float* x) const {
    switch (type) {
      case KvType::f32:
        return put(x);
      case KvType::f16:
        return put_floats<f16>(x);
      case KvType::bf16:
        return put_floats<bf16>(x);
      case KvType::int8:
      case KvType::int4:
        return put_codes(x);
    }
  }
};

float* numbers(char* at) {
  return static_cast<float*>(static_cast<void*>(at));
}

}  // namespace

void RUSSET_FOR_ISA(kv_store)(const KvStoreArgs& a) {
  const KvFormat& f = a.format;
  Place key{f.keys,  f.head_dim, a.block,          numbers(a.block + f.key_scales()),
            nullptr, a.slot,     f.keys_by_columns};
  Place value{f.values,
              f.head_dim,
              a.block + f.values_at(),
              numbers(a.block + f.value_scales()),
              numbers(a.block + f.value_minima()),
              a.slot,
              false};
  for (int t = 0; t < a.n_tokens; ++t, ++key.slot, ++value.slot) {
    key.put_token(a.k + size_t(t) * a.stride);
    value.put_token(a.v + size_t(t) * a.stride);
  }
}

}  // namespace russet
