// weights[i] = e^((x[i] - max) * scale),  sums[b] = sum of the weights of the b-th block
//
//   x  [n] f32, none above max, -infinity allowed        max  finite        scale  > 0, finite
//   sums  [n_blocks(n)] f32, blocks as in block_max.h    weights  [n] f32 or null
//
// The sums of a softmax, kept by blocks: a draw first walks the blocks and then within one. Weights below
// 1e-38 may be 0. Never allocates, never throws.
#pragma once
#include "core/variant.h"
#include "kernels/block_max/block_max.h"

namespace russet {

struct SumExpArgs {
  const float* x;
  int n;
  float max, scale;
  float *sums, *weights;
};
using SumExpFn = void(const SumExpArgs&);
std::span<const Variant<SumExpFn>> sum_exp_variants();  // fastest first, "ref" last
void sum_exp(const SumExpArgs& args);                   // the best of them on this chip

}  // namespace russet
