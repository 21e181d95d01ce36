#include "kernels/gate/gate.h"

#include <cmath>

namespace russet {

static double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x < 0 ? 0 : x;
  }
  return x;
}

// In double: the fast variants are measured against this.
static void gate_ref(const GateArgs& a) {
  for (int i = 0; i < a.n; ++i)
    a.y[i] = float(activate(a.activation, double(a.gate[i])) * (a.up ? double(a.up[i]) : 1.0));
}

RUSSET_DECLARE_SIMD(gate, GateArgs);

static constexpr Variant<GateFn> kVariants[] = {
    RUSSET_SIMD_ROWS(gate)  //
    {"ref", kBaseline, gate_ref},
};

std::span<const Variant<GateFn>> gate_variants() {
  return kVariants;
}

void gate(const GateArgs& args) {
  static GateFn* const run = pick("gate", gate_variants()).run;
  run(args);
}

}  // namespace russet
