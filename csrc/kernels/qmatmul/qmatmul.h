// y[t, r] = sum_c w[r, c] x[t, c], for weights in affine groups and int8 activations, any number of tokens
//
//   w  Packed [n_rows, n_cols], 8 or 4 bits, groups of 32, 64 or 128: weights/packed.h
//   x  [n_tokens, n_cols] int8 with a scale and a sum per group: kernels/quantize/quantize.h
//   y  [n_tokens, y_stride] f32, y_stride >= n_rows
//   scratch  64-byte aligned, kQmatmulScratchBytes, the caller's
//
// What every variant computes, operation by operation, is
//
//   d   = sum over the group of (q - center) * x           exact in int32
//   acc = fma(scale * x_scale, float(d), acc)              group after group
//   acc = fma(zero, x_scale * float(x_sum), acc)           where groups are not symmetric;
//                                                          zero = fma(center, scale, bias)
//
// so the bits of y are the same for every variant, batch, chunk of a prompt and number of threads. The
// product of decode reads each weight once and is bound by memory; that of prefill by the dot products.
// Never allocates, never throws.
#pragma once
#include "core/variant.h"
#include "weights/packed.h"

namespace russet {

constexpr size_t kQmatmulScratchBytes = size_t(1) << 20;

struct QuantizedX {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
};

struct QmatmulArgs {
  Packed w;
  QuantizedX x;
  float* y;
  int n_tokens;
  size_t y_stride;
  uint8_t* scratch;
};
using QmatmulFn = void(const QmatmulArgs&);
std::span<const Variant<QmatmulFn>> qmatmul_variants();  // fastest first, "ref" last
void qmatmul(const QmatmulArgs& args);                   // the best of them on this chip

}  // namespace russet
