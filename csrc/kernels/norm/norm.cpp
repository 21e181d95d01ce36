#include "kernels/norm/norm.h"

#include <cmath>
#include <cstddef>

namespace russet {

// Sums in double: the fast variants are measured against this.
static void norm_ref(const NormArgs& a) {
  for (int t = 0; t < a.n_tokens; ++t) {
    const float* x = a.x + size_t(t) * size_t(a.dim);
    float* y = a.y + size_t(t) * size_t(a.dim);
    double mean = 0, squares = 0;
    if (a.kind == NormKind::layer) {
      for (int i = 0; i < a.dim; ++i) mean += double(x[i]);
      mean /= a.dim;
    }
    for (int i = 0; i < a.dim; ++i) squares += (double(x[i]) - mean) * (double(x[i]) - mean);
    const double scale = 1.0 / std::sqrt(squares / a.dim + double(a.eps));
    for (int i = 0; i < a.dim; ++i)
      y[i] = float((double(x[i]) - mean) * scale * double(a.w[i]) + (a.bias ? double(a.bias[i]) : 0.0));
  }
}

RUSSET_DECLARE_SIMD(norm, NormArgs);

static constexpr Variant<NormFn> kVariants[] = {
    RUSSET_SIMD_ROWS(norm)  //
    {"ref", kBaseline, norm_ref},
};

std::span<const Variant<NormFn>> norm_variants() {
  return kVariants;
}

void norm(const NormArgs& args) {
  static NormFn* const run = pick("norm", norm_variants()).run;
  run(args);
}

}  // namespace russet
