#include <algorithm>

#include "core/simd.h"
#include "kernels/sum_exp/sum_exp.h"

namespace russet {

void RUSSET_FOR_ISA(sum_exp)(const SumExpArgs& a) {
  const Vec top = splat(a.max), scale = splat(a.scale);
  for (int b = 0; b < n_blocks(a.n); ++b) {
    const int end = std::min(a.n, (b + 1) * kBlockFloats);
    Vec sums = splat(0);
    int i = b * kBlockFloats;
    for (; i + Vec::width <= end; i += Vec::width) {
      const Vec weight = exp((load(a.x + i) - top) * scale);
      if (a.weights) store(a.weights + i, weight);
      sums = sums + weight;
    }
    float sum_of_block = sum(sums);
    if (i < end) {
      float lanes[Vec::width];
      store(lanes, exp((load_part(a.x + i, end - i) - top) * scale));
      for (int lane = 0; lane < end - i; ++lane) {
        if (a.weights) a.weights[i + lane] = lanes[lane];
        sum_of_block += lanes[lane];
      }
    }
    a.sums[b] = sum_of_block;
  }
}

}  // namespace russet
