#include <limits>

#include "core/simd.h"
#include "kernels/block_max/block_max.h"

namespace russet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// NaN is not less than infinity, and so becomes it: a plain maximum may lose a NaN.
Vec damage_shown(Vec x) {
  return where_less(x, splat(kInfinity), x, splat(kInfinity));
}

}  // namespace

void RUSSET_FOR_ISA(block_max)(const BlockMaxArgs& a) {
  static_assert(kBlockFloats % (2 * Vec::width) == 0);
  const int n_whole = a.n / kBlockFloats;
  for (int b = 0; b < n_whole; ++b) {
    const float* x = a.x + size_t(b) * kBlockFloats;
    Vec even = splat(-kInfinity), odd = even;  // two chains hide the latency of a maximum
    for (int i = 0; i < kBlockFloats; i += 2 * Vec::width) {
      even = max(even, damage_shown(load(x + i)));
      odd = max(odd, damage_shown(load(x + i + Vec::width)));
    }
    a.maxima[b] = max_of(max(even, odd));
  }
  if (n_whole == n_blocks(a.n)) return;
  float largest = -kInfinity;
  for (int i = n_whole * kBlockFloats; i < a.n; ++i) {
    const float x = a.x[i] < kInfinity ? a.x[i] : kInfinity;
    largest = x > largest ? x : largest;
  }
  a.maxima[n_whole] = largest;
}

}  // namespace russet
