// y[i] = activation(gate[i]) * up[i], or activation(gate[i]) alone where up is null
//
//   SwiGLU, GeGLU (Shazeer, arXiv 2002.05202); GELU exact and its tanh form (Hendrycks & Gimpel, arXiv
//   1606.08415) gate, up, y  [n] f32; y may be gate
//
// Three streams of floats and one exponential each: fused behind the product that makes them, they are still
// in cache.
#pragma once
#include "core/variant.h"

namespace russet {

enum class Activation : int { silu, gelu, gelu_tanh, relu };

struct GateArgs {
  Activation activation;
  const float *gate, *up;
  float* y;
  int n;
};
using GateFn = void(const GateArgs&);
std::span<const Variant<GateFn>> gate_variants();  // fastest first, "ref" last
void gate(const GateArgs& args);                   // the best of them on this chip

}  // namespace russet
