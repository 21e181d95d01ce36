// y[t, r] = sum_c w[r, c] * x[t, c], for one token or a few
//
//   w  [n_rows, n_cols] f32, f16 or bf16, rows adjacent, any alignment
//   x  [n_tokens, n_cols] f32, rows adjacent
//   y  [n_tokens, y_stride] f32, y_stride >= n_rows
//
// The product of decode: every weight comes from memory once and is used once per token, so the speed limit
// is memory. 16-bit weights are widened in registers. A token's sums are the same bits alone and in company
// (but for BLAS). Never allocates, never throws.
#pragma once
#include "core/variant.h"
#include "core/view.h"

namespace russet {

struct MatvecArgs {
  View w;
  const float* x;
  float* y;
  int n_tokens = 1;
  size_t y_stride = 0;  // of no account for one token
};
using MatvecFn = void(const MatvecArgs&);
std::span<const Variant<MatvecFn>> matvec_variants(DType dtype);  // fastest first, "ref" last
void matvec(const MatvecArgs& args);                              // the best of them on this chip

}  // namespace russet
