// The other way to multiply many tokens with a packed matrix: unpack it to floats, block by block, and let
// BLAS multiply. Accelerate reaches Apple's matrix units that way; where the chip's own dot products are
// faster, it is never taken. Which of the two it is, is measured.
//
// Activations stay floats on this way, so results differ from qmatmul's by what their rounding to int8 costs.
#pragma once
#include "weights/packed.h"

namespace russet {

constexpr size_t kUnpackedFloats = size_t(1) << 20;

// y[t, r] = sum_c w[r, c] x[t, c]; x [n_tokens, n_cols] f32, scratch kUnpackedFloats floats, 64-byte aligned.
// Needs n_cols <= kUnpackedFloats / kBandRows, and BLAS.
void unpacked_matmul(const Packed& w, const float* x, float* y, int n_tokens, size_t y_stride,
                     float* scratch);

// The number of tokens from which unpacked_matmul was faster than qmatmul by a fifth or more, on n_threads
// threads, each with rows of its own: 16, 32 ... 512, or 0 where it never was. A fifth, because qmatmul gives
// the same bits however a prompt is cut, and that is worth something. Takes some hundredths of a second.
int measure_crossover(const Packed& w, int n_threads);

}  // namespace russet
