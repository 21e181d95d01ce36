// From the integer sums of a band to its products with one token: the second half of kernels/qmatmul, with
// the same roundings in the same order.
//
//   band     whose scales and biases are read, [n_groups, 16] f32, f16 or bf16; symmetric: no biases
//   sums     [n_groups, 16] int32, sums of q x
//   center   what is to be taken off each q: 2^(bits - 1), or less where only a part of q was summed
//   y        [16] f32
#pragma once
#include "core/variant.h"
#include "kernels/qmatmul/qmatmul.h"

namespace russet {

struct ScaleSumsArgs {
  Packed band;
  const int32_t* sums;  // 64-byte aligned
  int center;
  QuantizedX x;  // one token; its scales and sums are read
  float* y;
};
using ScaleSumsFn = void(const ScaleSumsArgs&);
std::span<const Variant<ScaleSumsFn>> scale_sums_variants();  // fastest first, "ref" last
void scale_sums(const ScaleSumsArgs& args);                   // the best of them on this chip

}  // namespace russet
