#include "kernels/rope/rope.h"

#include <cstddef>

namespace russet {

static void rope_ref(const RopeArgs& a) {
  const int half = a.rotary_dim / 2;
  for (int h = 0; h < a.n_heads; ++h) {
    float* lower = a.x + size_t(h) * size_t(a.head_dim);
    float* upper = lower + half;
    for (int i = 0; i < half; ++i) {
      const double l = double(lower[i]), u = double(upper[i]), c = double(a.cos[i]), s = double(a.sin[i]);
      lower[i] = float(l * c - u * s);
      upper[i] = float(u * c + l * s);
    }
  }
}

RUSSET_DECLARE_SIMD(rope, RopeArgs);

static constexpr Variant<RopeFn> kVariants[] = {
    RUSSET_SIMD_ROWS(rope)  //
    {"ref", kBaseline, rope_ref},
};

std::span<const Variant<RopeFn>> rope_variants() {
  return kVariants;
}

void rope(const RopeArgs& args) {
  static RopeFn* const run = pick("rope", rope_variants()).run;
  run(args);
}

}  // namespace russet
