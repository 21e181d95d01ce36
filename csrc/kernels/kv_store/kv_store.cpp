#include "kernels/kv_store/kv_store.h"

#include <algorithm>
#include <cmath>
#include <limits>

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
  const bool coded = type == KvType::int8 || type == KvType::int4;
  const float most = type == KvType::int8 ? 127 : 15;  // the largest code
  const auto [low, high] = std::minmax_element(x, x + dim);
  float scale = type == KvType::int8 ? std::fabs(std::max(-*low, *high)) / most : (*high - *low) / most;
  float minimum = type == KvType::int8 ? 0 : *low;
  if (!std::isfinite(scale) || !std::all_of(x, x + dim, [](float xc) { return std::isfinite(xc); })) {
    scale = std::numeric_limits<float>::quiet_NaN();
    minimum = 0;
  }
  if (coded) scales[slot] = scale;
  if (type == KvType::int4) minima[slot] = minimum;
  for (size_t c = 0; c < dim; ++c) {
    float q = x[c];
    if (coded) q = scale > 0 ? std::clamp(std::nearbyint((x[c] - minimum) / scale), -most, most) : 0;
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

RUSSET_DECLARE_SIMD(kv_store, KvStoreArgs);

static constexpr Variant<KvStoreFn> kVariants[] = {
    RUSSET_SIMD_ROWS(kv_store)  //
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
