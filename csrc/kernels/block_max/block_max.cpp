#include "kernels/block_max/block_max.h"

#include <algorithm>
#include <limits>

namespace russet {

static void block_max_ref(const BlockMaxArgs& a) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int b = 0; b < n_blocks(a.n); ++b) {
    float largest = -kInfinity;
    for (int i = b * kBlockFloats; i < std::min(a.n, (b + 1) * kBlockFloats); ++i)
      largest = std::max(largest, a.x[i] < kInfinity ? a.x[i] : kInfinity);
    a.maxima[b] = largest;
  }
}

RUSSET_DECLARE_SIMD(block_max, BlockMaxArgs);

static constexpr Variant<BlockMaxFn> kVariants[] = {
    RUSSET_SIMD_ROWS(block_max)  //
    {"ref", kBaseline, block_max_ref},
};

std::span<const Variant<BlockMaxFn>> block_max_variants() {
  return kVariants;
}

void block_max(const BlockMaxArgs& args) {
  static BlockMaxFn* const run = pick("block_max", block_max_variants()).run;
  run(args);
}

}  // namespace russet
