// Weights to affine groups, when a model is loaded:
//
//   w[g, i] = scale[g] * code[g, i] + bias[g],   code in [0, 2^bits)
//
//   w      [n_groups, group_size] f32            codes          [n_groups, group_size], a byte each
//   dtype  what scales and biases will be        scales, biases [n_groups] f32, of values that dtype has
//          stored in
//
// symmetric   bias is exactly -center * scale, center = 2^(bits - 1). The scale is max |w| / (center - 1),
//             rounded up, so that nothing is clipped: every error is at most half a step.
// asymmetric  the fit of least squared error among those that the group's extremes suggest (fit_steps.h),
//             each refitted to its codes by least squares (as Lloyd, IEEE Trans. Inf. Theory 28(2), 1982:
//             codes for the fit, a fit for the codes).
//
// A group that holds NaN or infinity has scale NaN and codes 0. Every step is one IEEE operation, and a
// group's sums run from its first weight to its last: the bits are the same on every chip. Needs 4 or 8 bits
// and groups of 32, 64 or 128. Never allocates, never throws.
#pragma once
#include <cstdint>

#include "core/variant.h"
#include "core/view.h"

namespace russet {

struct FitArgs {
  const float* w;
  int n_groups, group_size, bits;
  bool symmetric;
  DType dtype;
  uint8_t* codes;
  float *scales, *biases;
};
using FitFn = void(const FitArgs&);
std::span<const Variant<FitFn>> fit_variants();  // fastest first, "ref" last
void fit(const FitArgs& args);                   // the best of them on this chip

}  // namespace russet
