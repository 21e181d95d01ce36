#include <cmath>

#include "core/simd.h"
#include "kernels/norm/norm.h"

namespace russet {
namespace {

float mean_of(const float* x, int n) {
  Vec acc = splat(0);
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) acc = acc + load(x + i);
  if (i < n) acc = acc + load_part(x + i, n - i);
  return sum(acc) / float(n);
}

// sum (x - mean)^2
float squares_of(const float* x, int n, float mean) {
  const Vec m = splat(mean);
  Vec acc = splat(0);
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) {
    const Vec d = load(x + i) - m;
    acc = fma(d, d, acc);
  }
  float rest = 0;
  for (; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
  return sum(acc) + rest;
}

}  // namespace

void RUSSET_FOR_ISA(norm)(const NormArgs& a) {
  for (int t = 0; t < a.n_tokens; ++t) {
    const float* x = a.x + size_t(t) * size_t(a.dim);
    float* y = a.y + size_t(t) * size_t(a.dim);
    const float mean = a.kind == NormKind::layer ? mean_of(x, a.dim) : 0.0f;
    const float scale = 1.0f / std::sqrt(squares_of(x, a.dim, mean) / float(a.dim) + a.eps);
    const Vec m = splat(mean), s = splat(scale);
    int i = 0;
    for (; i + Vec::width <= a.dim; i += Vec::width) {
      const Vec unit = (load(x + i) - m) * s;
      store(y + i, a.bias ? fma(unit, load(a.w + i), load(a.bias + i)) : unit * load(a.w + i));
    }
    for (; i < a.dim; ++i) y[i] = (x[i] - mean) * scale * a.w[i] + (a.bias ? a.bias[i] : 0.0f);
  }
}

}  // namespace russet
