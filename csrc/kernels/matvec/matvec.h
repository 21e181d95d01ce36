// y[r] = sum_c w[r, c] * x[c]
//
//   w  [n_rows, n_cols]  f32, f16 or bf16, rows adjacent, any alignment
//   x  [n_cols] f32      y  [n_rows] f32
//
// The product of decode: every weight is read once and used once, so the speed limit is memory. 16-bit
// weights are widened in registers. Never allocates, never throws.
#pragma once
#include "core/variant.h"
#include "core/view.h"

namespace russet {

struct MatvecArgs {
  View w;
  const float* x;
  float* y;
};
using MatvecFn = void(const MatvecArgs&);
std::span<const Variant<MatvecFn>> matvec_variants(DType dtype);  // fastest first, "ref" last
void matvec(const MatvecArgs& args);                              // the best of them on this chip

}  // namespace russet
