#include "kernels/scale_sums/scale_sums.h"

#include <cmath>

namespace russet {

static void scale_sums_ref(const ScaleSumsArgs& a) {
  const Packed& w = a.band;
  with_type(w.dtype, [&]<typename T>(const T*) {
    const T *scales = static_cast<const T*>(w.scales), *biases = static_cast<const T*>(w.biases);
    for (int r = 0; r < kBandRows; ++r) {
      float acc = 0;
      for (int g = 0; g < w.n_groups(); ++g) {
        const float scale = float_at(scales + g * kBandRows + r), x_scale = a.x.scales[g];
        const int32_t d = a.sums[g * kBandRows + r] - a.center * a.x.sums[g];
        acc = std::fma(scale * x_scale, float(d), acc);
        if (!biases) continue;
        const float zero = std::fma(w.center(), scale, float_at(biases + g * kBandRows + r));
        acc = std::fma(zero, x_scale * float(a.x.sums[g]), acc);
      }
      a.y[r] = acc;
    }
  });
}

RUSSET_DECLARE_SIMD(scale_sums, ScaleSumsArgs);

static constexpr Variant<ScaleSumsFn> kVariants[] = {
    RUSSET_SIMD_ROWS(scale_sums)  //
    {"ref", kBaseline, scale_sums_ref},
};

std::span<const Variant<ScaleSumsFn>> scale_sums_variants() {
  return kVariants;
}

void scale_sums(const ScaleSumsArgs& args) {
  static ScaleSumsFn* const run = pick("scale_sums", scale_sums_variants()).run;
  run(args);
}

}  // namespace russet
