// Two passes over a group that lies in registers or the L1 cache. Codes are whole numbers in float until they
// are stored, so their sum is exact in any order.
#include <limits>

#include "core/simd.h"
#include "kernels/quantize/quantize.h"

namespace russet {
void RUSSET_FOR_ISA(quantize)(const QuantizeArgs& a) {
  const int n_groups = a.n_tokens * (a.n_cols / a.group_size);
  for (int g = 0; g < n_groups; ++g) {
    const float* x = a.x + size_t(g) * size_t(a.group_size);
    int8_t* codes = a.codes + size_t(g) * size_t(a.group_size);
    Vec most = splat(0), poison = splat(0);
    for (int i = 0; i < a.group_size; i += Vec::width) {
      const Vec v = load(x + i);
      most = max(most, max(v, splat(0) - v));
      poison = fma(v, splat(0), poison);  // 0 times NaN or infinity is NaN, times anything else 0
    }
    const bool finite = sum(poison) == 0;
    const float largest = max_of(most);
    const float turn = finite && largest >= kLeastMax ? 127 / largest : 0;
    Vec total = splat(0);
    for (int i = 0; i < a.group_size; i += Vec::width) {
      const Vec whole = finite ? round(load(x + i) * splat(turn)) : splat(0);
      store(codes + i, whole);
      total = total + whole;
    }
    a.scales[g] = !finite ? std::numeric_limits<float>::quiet_NaN() : turn > 0 ? largest / 127 : 0;
    a.sums[g] = int32_t(sum(total));
  }
}

}  // namespace russet
