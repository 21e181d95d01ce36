// From floats to affine groups, as MLX stores them (Affine, weights/packed.h):
//
//   w[r, c] = scale[r, g] * q[r, c] + bias[r, g],   g = c / group_size,   q in [0, 2^bits)
//
// Scales and biases have the type of the weights, and codes are chosen for them as they are stored. What fits
// a group best, and how it is found, is kernels/fit/fit.h. Groups whose weights are all alike, or alike but
// for the sign where symmetric, come out exactly.
#pragma once
#include "core/view.h"
#include "weights/packed.h"

namespace russet {

// Writes codes [n_rows, n_cols * bits / 32] words, scales and biases [n_rows, n_groups] of w.dtype. Needs
// n_cols % group_size == 0, and 4 or 8 bits. Throws Error{weights}, with the place, where a weight is NaN or
// infinite.
void to_affine(const View& w, int bits, int group_size, bool symmetric, uint32_t* codes, void* scales,
               void* biases, int n_threads);

// What was lost: sums over all weights w and what `a` makes of them, v.
struct AffineErrors {
  double max_error = 0;  // max |w - v|
  double errors = 0;     // sum (w - v)^2
  double ww = 0, vv = 0, wv = 0;
};
AffineErrors affine_errors(const View& w, const Affine& a, int n_threads);

}  // namespace russet
