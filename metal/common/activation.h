// activation(x), as csrc/kernels/gate/gate.h defines and numbers them. Needs safe math: exp may overflow.
#pragma once
#include "args.h"

enum : uint { kSilu, kGelu, kGeluTanh, kRelu };

// Metal has no erf. Within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline float erf_of(float x) {
  const float t = 1 / (1 + 0.3275911f * fabs(x));
  const float p =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  return copysign(1 - p * exp(-x * x), x);
}

inline float activate(uint activation, float x) {
  switch (activation) {
    case kSilu:
      return x / (1 + exp(-x));
    case kGelu:
      return 0.5f * x * (1 + erf_of(0.70710678f * x));
    case kGeluTanh:
      return 0.5f * x * (1 + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    default:
      return x < 0 ? 0 : x;
  }
}
