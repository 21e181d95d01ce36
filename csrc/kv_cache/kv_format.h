// KvFormat: what a block of the cache is made of: keys and values of kBlockTokens consecutive tokens, of one
// key-value head of one layer.
//
//   keys           [head_dim][kBlockTokens] by columns, or [kBlockTokens][head_dim] by rows
//   key_scales     float [kBlockTokens], of int8 keys
//   values         [kBlockTokens][head_dim]
//   value_scales   float [kBlockTokens], of int8 and int4 values
//   value_minima   float [kBlockTokens], of int4 values
//
// int8: x = scale * q, q from -127 to 127. int4: x = minimum + scale * q, q from 0 to 15, two in a byte, the
// even element in its low half. By columns the CPU's kernels have a block's keys as the lanes of a few
// vectors, without a sum across lanes; a GPU reads them by rows.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/view.h"

namespace russet {

enum { kBlockTokens = 64, kMaxHeadDim = 512 };

inline size_t blocks_for(int n_tokens) {
  return (size_t(n_tokens) + kBlockTokens - 1) / kBlockTokens;
}

// The oldest key that a token at `pos` sees of those in its window; a window of 0 is all of them.
inline int first_key(int pos, int window) {
  return window > 0 && pos >= window ? pos - window + 1 : 0;
}

enum class KvType : uint8_t { f32, f16, bf16, int8, int4 };

inline KvType kv_type(DType dtype) {
  return dtype == DType::f32 ? KvType::f32 : dtype == DType::f16 ? KvType::f16 : KvType::bf16;
}

struct KvFormat {
  KvType keys = KvType::f32, values = KvType::f32;
  int head_dim = 0;
  bool keys_by_columns = true;

  bool operator==(const KvFormat&) const = default;

  size_t key_scales() const { return plane_bytes(keys); }
  size_t values_at() const { return key_scales() + (keys == KvType::int8 ? kNumbersBytes : 0); }
  size_t value_scales() const { return values_at() + plane_bytes(values); }
  size_t value_minima() const { return value_scales() + kNumbersBytes; }
  size_t block_bytes() const {  // a multiple of 64, as every part is
    return value_scales() + (values == KvType::int8   ? kNumbersBytes
                             : values == KvType::int4 ? 2 * kNumbersBytes
                                                      : 0);
  }

 private:
  static constexpr size_t kNumbersBytes = kBlockTokens * sizeof(float);
  size_t plane_bytes(KvType type) const {
    const size_t n = size_t(kBlockTokens) * size_t(head_dim);
    switch (type) {
      case KvType::f32:
        return 4 * n;
      case KvType::f16:
      case KvType::bf16:
        return 2 * n;
      case KvType::int8:
        return n;
      case KvType::int4:
        return size_t(kBlockTokens) * ((size_t(head_dim) + 1) / 2);
    }
    return 0;
  }
};

}  // namespace russet
