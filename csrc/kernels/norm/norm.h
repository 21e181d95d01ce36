// RMSNorm    y[t] = x[t] * w / sqrt(mean(x[t]^2) + eps)                      (Zhang & Sennrich, arXiv
// 1910.07467) LayerNorm  y[t] = (x[t] - mean(x[t])) / sqrt(var(x[t]) + eps) * w + bias   (Ba et al., arXiv
// 1607.06450)
//
//   x, y  [n_tokens, dim] f32, rows adjacent; y may be x
//   w     [dim] f32        bias  [dim] f32 or null
//
// Two passes over a row that stays in the L1 cache. Never allocates, never throws.
#pragma once
#include "core/variant.h"

namespace russet {

enum class NormKind : int { rms, layer };

struct NormArgs {
  NormKind kind;
  const float *x, *w, *bias;
  float eps;
  float* y;
  int n_tokens, dim;
};
using NormFn = void(const NormArgs&);
std::span<const Variant<NormFn>> norm_variants();  // fastest first, "ref" last
void norm(const NormArgs& args);                   // the best of them on this chip

}  // namespace russet
