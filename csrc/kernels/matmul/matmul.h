// y[t, r] = sum_c x[t, c] * w[r, c]
//
//   x  [n_tokens, n_cols] f32, rows adjacent
//   w  [n_rows, n_cols]   f32, f16 or bf16, rows adjacent, any alignment
//   y  [n_tokens, y_stride] f32, y_stride >= n_rows
//   scratch               64-byte aligned, kMatmulScratchFloats floats, the caller's
//
// The product of prefill. Never allocates, never throws; the caller cuts the rows over its threads.
#pragma once
#include "core/variant.h"
#include "core/view.h"

namespace russet {

constexpr size_t kMatmulScratchFloats = size_t(1) << 20;  // 4 MiB

struct MatmulArgs {
  const float* x;
  View w;
  float* y;
  int n_tokens;
  size_t y_stride;
  float* scratch;
};
using MatmulFn = void(const MatmulArgs&);
std::span<const Variant<MatmulFn>> matmul_variants(DType dtype);  // fastest first, "ref" last
void matmul(const MatmulArgs& args);                              // the best of them on this machine
const char* matmul_library();  // "Accelerate", OpenBLAS's own words, or "none"

}  // namespace russet
