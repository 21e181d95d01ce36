#include <algorithm>
#include <cmath>

#include "core/simd.h"
#include "kernels/gate/gate.h"

namespace russet {
namespace {

Vec silu(Vec x) {
  return x / (splat(1) + exp(splat(0) - x));
}

Vec gelu_tanh(Vec x) {
  const Vec inner = splat(0.7978845608028654f) * fma(x * x * x, splat(0.044715f), x);
  return splat(0.5f) * x * (splat(1) + tanh(inner));
}

// One lane at a time through the library's erf: exact to its last bit, and only GPT-NeoX asks for it.
Vec gelu(Vec x) {
  float lanes[Vec::width];
  store(lanes, x);
  for (float& lane : lanes) lane = 0.5f * lane * (1 + std::erf(lane * 0.70710678118654752f));
  return load(lanes);
}

template <typename F>
void each(const GateArgs& a, F activation) {
  for (int i = 0; i < a.n; i += Vec::width) {
    const int n = std::min(Vec::width, a.n - i);
    if (n == Vec::width) {
      const Vec y = activation(load(a.gate + i));
      store(a.y + i, a.up ? y * load(a.up + i) : y);
    } else {
      const Vec y = activation(load_part(a.gate + i, n));
      store_part(a.y + i, a.up ? y * load_part(a.up + i, n) : y, n);
    }
  }
}

}  // namespace

void RUSSET_FOR_ISA(gate)(const GateArgs& a) {
  switch (a.activation) {
    case Activation::silu:
      return each(a, silu);
    case Activation::gelu:
      return each(a, gelu);
    case Activation::gelu_tanh:
      return each(a, gelu_tanh);
    case Activation::relu:
      return each(a, [](Vec x) { return max(splat(0), x); });
  }
}

}  // namespace russet
