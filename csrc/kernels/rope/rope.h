// Rotary position embedding, in place (Su et al., arXiv 2104.09864), in the half-split form of Hugging Face:
//
//   for i < rotary_dim / 2:   x[i]                  = x[i] * cos[i] - x[i + rotary_dim / 2] * sin[i]
//                             x[i + rotary_dim / 2] = x[i + rotary_dim / 2] * cos[i] + x[i] * sin[i]
//
//   x         [n_heads, head_dim] f32, one token; columns from rotary_dim on stay as they are
//   cos, sin  [rotary_dim / 2] f32, of this token's position
#pragma once
#include "core/variant.h"

namespace russet {

struct RopeArgs {
  float* x;
  const float *cos, *sin;
  int n_heads, head_dim, rotary_dim;
};
using RopeFn = void(const RopeArgs&);
std::span<const Variant<RopeFn>> rope_variants();  // fastest first, "ref" last
void rope(const RopeArgs& args);                   // the best of them on this chip

}  // namespace russet
