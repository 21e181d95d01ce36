#include "kernels/sum_exp/sum_exp.h"

#include <algorithm>
#include <cmath>

namespace russet {

// In double: the fast variants are measured against this.
static void sum_exp_ref(const SumExpArgs& a) {
  for (int b = 0; b < n_blocks(a.n); ++b) {
    double sum = 0;
    for (int i = b * kBlockFloats; i < std::min(a.n, (b + 1) * kBlockFloats); ++i) {
      const double weight = std::exp((double(a.x[i]) - double(a.max)) * double(a.scale));
      if (a.weights) a.weights[i] = float(weight);
      sum += weight;
    }
    a.sums[b] = float(sum);
  }
}

RUSSET_DECLARE_SIMD(sum_exp, SumExpArgs);

static constexpr Variant<SumExpFn> kVariants[] = {
    RUSSET_SIMD_ROWS(sum_exp)  //
    {"ref", kBaseline, sum_exp_ref},
};

std::span<const Variant<SumExpFn>> sum_exp_variants() {
  return kVariants;
}

void sum_exp(const SumExpArgs& args) {
  static SumExpFn* const run = pick("sum_exp", sum_exp_variants()).run;
  run(args);
}

}  // namespace russet
