#include "kernels/kv_store/kv_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace russet {

static float* numbers(const KvStoreArgs& a, size_t offset) {
  return static_cast<float*>(static_cast<void*>(a.block + offset));
}

// x as element i of a plane
static void put(KvType type, char* plane, size_t i, float x) {
  void* p = plane;
  switch (type) {
    case KvType::f32:
      static_cast<float*>(p)[i] = x;
      break;
    case KvType::f16:
      static_cast<f16*>(p)[i] = to_f16(x);
      break;
    case KvType::bf16:
      static_cast<bf16*>(p)[i] = to_bf16(x);
      break;
    case KvType::int8:
      static_cast<int8_t*>(p)[i] = int8_t(x);
      break;
    case KvType::int4: {
      uint8_t& byte = static_cast<uint8_t*>(p)[i / 2];
      byte = i % 2 ? uint8_t((byte & 15) | int(x) << 4) : uint8_t((byte & 0xf0) | int(x));
    }
  }
}

static void store(const KvStoreArgs& a, const float* x, KvType type, char* plane, float* scales,
                  float* minima, int slot, bool by_columns) {
  const size_t dim = size_t(a.format.head_dim);
  const size_t row = type == KvType::int4 ? (dim + 1) / 2 * 2 : dim;
  float scale = 1, minimum = 0;
  if (type == KvType::int8) {
    float most = 0;
    for (size_t c = 0; c < dim; ++c) most = std::max(most, std::fabs(x[c]));
    scales[slot] = scale = most / 127;
  } else if (type == KvType::int4) {
    const auto [low, high] = std::minmax_element(x, x + dim);
    minima[slot] = minimum = *low;
    scales[slot] = scale = (*high - *low) / 15;
  }
  for (size_t c = 0; c < dim; ++c) {
    float q = x[c];
    if (type == KvType::int8 || type == KvType::int4)
      q = scale == 0 ? 0 : std::nearbyint((x[c] - minimum) / scale);
    put(type, plane, by_columns ? c * kBlockTokens + size_t(slot) : size_t(slot) * row + c, q);
  }
}

static void kv_store_ref(const KvStoreArgs& a) {
  const KvFormat& f = a.format;
  for (int t = 0; t < a.n_tokens; ++t) {
    const size_t from = size_t(t) * a.stride;
    store(a, a.k + from, f.keys, a.block, numbers(a, f.key_scales()), nullptr, a.slot + t, f.keys_by_columns);
    store(a, a.v + from, f.values, a.block + f.values_at(), numbers(a, f.value_scales()),
          numbers(a, f.value_minima()), a.slot + t, false);
  }
}

static constexpr Variant<KvStoreFn> kVariants[] = {
    {"ref", kBaseline, kv_store_ref},
};

std::span<const Variant<KvStoreFn>> kv_store_variants() {
  return kVariants;
}

void kv_store(const KvStoreArgs& args) {
  static KvStoreFn* const run = pick("kv_store", kv_store_variants()).run;
  run(args);
}

}  // namespace russet
