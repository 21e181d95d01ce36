#include "core/simd.h"
#include "kernels/rope/rope.h"

namespace russet {

void RUSSET_FOR_ISA(rope)(const RopeArgs& a) {
  const int half = a.rotary_dim / 2;
  for (int h = 0; h < a.n_heads; ++h) {
    float* lower = a.x + size_t(h) * size_t(a.head_dim);
    float* upper = lower + half;
    int i = 0;
    for (; i + Vec::width <= half; i += Vec::width) {
      const Vec l = load(lower + i), u = load(upper + i), c = load(a.cos + i), s = load(a.sin + i);
      store(lower + i, l * c - u * s);
      store(upper + i, fma(u, c, l * s));
    }
    for (; i < half; ++i) {
      const float l = lower[i], u = upper[i];
      lower[i] = l * a.cos[i] - u * a.sin[i];
      upper[i] = u * a.cos[i] + l * a.sin[i];
    }
  }
}

}  // namespace russet
