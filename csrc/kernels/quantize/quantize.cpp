#include "kernels/quantize/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace russet {

static void quantize_ref(const QuantizeArgs& a) {
  const int n_groups = a.n_tokens * (a.n_cols / a.group_size);
  for (int g = 0; g < n_groups; ++g) {
    const float* x = a.x + size_t(g) * size_t(a.group_size);
    int8_t* codes = a.codes + size_t(g) * size_t(a.group_size);
    float most = 0;
    bool finite = true;
    for (int i = 0; i < a.group_size; ++i) {
      finite = finite && std::isfinite(x[i]);
      most = std::max(most, std::fabs(x[i]));
    }
    const float turn = finite && most >= kLeastMax ? 127 / most : 0;
    int sum = 0;
    for (int i = 0; i < a.group_size; ++i) {
      codes[i] = finite ? int8_t(std::nearbyint(x[i] * turn)) : int8_t(0);
      sum += codes[i];
    }
    a.scales[g] = !finite ? std::numeric_limits<float>::quiet_NaN() : turn > 0 ? most / 127 : 0;
    a.sums[g] = sum;
  }
}

RUSSET_DECLARE_SIMD(quantize, QuantizeArgs);

static constexpr Variant<QuantizeFn> kVariants[] = {
    RUSSET_SIMD_ROWS(quantize)  //
    {"ref", kBaseline, quantize_ref},
};

std::span<const Variant<QuantizeFn>> quantize_variants() {
  return kVariants;
}

void quantize(const QuantizeArgs& args) {
  static QuantizeFn* const run = pick("quantize", quantize_variants()).run;
  run(args);
}

}  // namespace russet
