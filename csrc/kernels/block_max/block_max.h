// maxima[b] = max of x over its b-th block, +infinity where the block holds +infinity or NaN
//
//   x  [n] f32        maxima  [n_blocks(n)] f32; a block is kBlockFloats, the last may be shorter
//
// One pass at the speed of memory. Whoever then looks for large values passes over most blocks unread. Never
// allocates, never throws.
#pragma once
#include "core/variant.h"

namespace russet {

constexpr int kBlockFloats = 128;
constexpr int n_blocks(int n) {
  return (n + kBlockFloats - 1) / kBlockFloats;
}

struct BlockMaxArgs {
  const float* x;
  int n;
  float* maxima;
};
using BlockMaxFn = void(const BlockMaxArgs&);
std::span<const Variant<BlockMaxFn>> block_max_variants();  // fastest first, "ref" last
void block_max(const BlockMaxArgs& args);                   // the best of them on this chip

}  // namespace russet
