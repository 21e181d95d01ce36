#include "kernels/kv_store/kv_load.h"

#include <cstring>

namespace russet {

static float number_at(const char* floats, int i) {
  return float_at(static_cast<const float*>(static_cast<const void*>(floats)) + i);
}

// Element i of a plane of numbers, before a scale is applied.
static float element(KvType type, const char* plane, size_t i) {
  const void* p = plane;
  switch (type) {
    case KvType::f32:
      return float_at(static_cast<const float*>(p) + i);
    case KvType::f16:
      return float_at(static_cast<const f16*>(p) + i);
    case KvType::bf16:
      return float_at(static_cast<const bf16*>(p) + i);
    case KvType::int8:
      return float(static_cast<const int8_t*>(p)[i]);
    case KvType::int4:
      return float(static_cast<const uint8_t*>(p)[i / 2] >> (i % 2 * 4) & 15);
  }
  return 0;
}

void load_key(const KvFormat& f, const char* block, int slot, float* key) {
  const float scale = f.keys == KvType::int8 ? number_at(block + f.key_scales(), slot) : 1;
  const size_t dim = size_t(f.head_dim);
  for (size_t c = 0; c < dim; ++c) {
    const size_t at = f.keys_by_columns ? c * kBlockTokens + size_t(slot) : size_t(slot) * dim + c;
    key[c] = element(f.keys, block, at) * scale;
  }
}

void load_value(const KvFormat& f, const char* block, int slot, float* value) {
  const bool int4 = f.values == KvType::int4, scaled = int4 || f.values == KvType::int8;
  const float scale = scaled ? number_at(block + f.value_scales(), slot) : 1;
  const float minimum = int4 ? number_at(block + f.value_minima(), slot) : 0;
  const size_t dim = size_t(f.head_dim), row = int4 ? (dim + 1) / 2 * 2 : dim;
  for (size_t c = 0; c < dim; ++c)
    value[c] = minimum + scale * element(f.values, block + f.values_at(), size_t(slot) * row + c);
}

}  // namespace russet
