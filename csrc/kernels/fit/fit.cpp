#include "kernels/fit/fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/fit/fit_steps.h"

namespace russet {

static constexpr float kInfinity = std::numeric_limits<float>::infinity();
static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One round of the search: the squared error of a fit, and what would suit its codes best.
struct Round {
  float error, scale, bias;
};

static Round round_of(const float* w, int n, float scale, float bias, float most_code) {
  if (!(std::abs(scale) >= kLeastStep)) scale = kNan;
  const float inverse = 1 / scale;
  float error = 0, q_sum = 0, qq_sum = 0, d_sum = 0, qd_sum = 0;
  for (int i = 0; i < n; ++i) {
    const float x = w[i] - bias;
    const float q = std::nearbyint(std::min(std::max(x * inverse, 0.0f), most_code));
    const float d = std::fma(-scale, q, x);
    error = std::fma(d, d, error);
    q_sum += q;
    qq_sum = std::fma(q, q, qq_sum);
    d_sum += d;
    qd_sum = std::fma(q, d, qd_sum);
  }
  // The line through the errors d over the codes q, by least squares.
  const float q_down = 0 - q_sum;
  const float spread = std::fma(q_down, q_sum, float(n) * qq_sum);
  const float slope = std::fma(q_down, d_sum, float(n) * qd_sum) / spread;
  return {error, scale + slope, bias + std::fma(slope, q_down, d_sum) / float(n)};
}

static void search(const FitArgs& a, const float* w, float* scale, float* bias) {
  const float low = *std::min_element(w, w + a.group_size), high = *std::max_element(w, w + a.group_size);
  float least_error = kInfinity;
  for (int start = 0; start < n_starts(a.bits); ++start) {
    float s, b;
    start_of(start, &low, &high, 1, a.bits, a.dtype, &s, &b);
    if (start == 0) *scale = s, *bias = b;
    for (int i = 0; i < kRefits; ++i) {
      const Round round = round_of(w, a.group_size, s, b, float((1 << a.bits) - 1));
      if (round.error < least_error) least_error = round.error, *scale = s, *bias = b;
      s = round.scale, b = round.bias;
      round_to(a.dtype, &s, 1);
      round_to(a.dtype, &b, 1);
    }
  }
}

// round(x / scale), then moved where the division's own rounding had made it a tie, or half of one.
static float nearest_code(float x, float scale) {
  const float q = std::nearbyint(x / scale), d = std::fma(-scale, q, x);
  const float towards = scale < 0 ? -d : d, half = std::abs(scale);
  return 2 * towards > half ? q + 1 : 2 * towards < -half ? q - 1 : q;
}

static void fit_ref(const FitArgs& a) {
  const float center = float(1 << (a.bits - 1)), most_code = 2 * center - 1;
  for (int g = 0; g < a.n_groups; ++g) {
    const float* w = a.w + size_t(g) * size_t(a.group_size);
    uint8_t* codes = a.codes + size_t(g) * size_t(a.group_size);
    float &scale = a.scales[g], &bias = a.biases[g];
    float least = kInfinity, most = 0;
    bool finite = true;
    for (int i = 0; i < a.group_size; ++i) {
      finite = finite && std::isfinite(w[i]);
      least = std::min(least, std::abs(w[i]));
      most = std::max(most, std::abs(w[i]));
    }
    if (!finite) {
      scale = bias = kNan;
    } else if (a.symmetric) {
      scale = symmetric_scale(least, most, a.bits, a.dtype);
      bias = -center * scale;
    } else {
      search(a, w, &scale, &bias);
    }
    // Symmetric codes are counted from the center, so that no bias is taken off and rounded.
    const float from = a.symmetric ? center : 0, off = a.symmetric ? 0 : bias, shrink = shrink_for(off);
    for (int i = 0; i < a.group_size; ++i) {
      const float x = std::fma(w[i], shrink, -off * shrink);
      const float q = !finite ? 0 : scale == 0 ? center : nearest_code(x, scale * shrink) + from;
      codes[i] = uint8_t(std::min(std::max(q, 0.0f), most_code));
    }
  }
}

RUSSET_DECLARE_SIMD(fit, FitArgs);

static constexpr Variant<FitFn> kVariants[] = {
    RUSSET_SIMD_ROWS(fit)  //
    {"ref", kBaseline, fit_ref},
};

std::span<const Variant<FitFn>> fit_variants() {
  return kVariants;
}

void fit(const FitArgs& args) {
  static FitFn* const run = pick("fit", fit_variants()).run;
  run(args);
}

}  // namespace russet
