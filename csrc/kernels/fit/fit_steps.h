// What all variants of fit take a few times per group, compiled once for them all. Arrays of n, one of each
// group.
#pragma once
#include "core/view.h"

namespace russet {

constexpr int kMostGroup = 128;

// Fits tried from one start: each later one is the best for the codes of the one before.
constexpr int kRefits = 4;

// Finer steps than this are not searched: their inverse would be beyond the largest float.
constexpr float kLeastStep = 0x1p-120f;

// What weights are multiplied by when codes are written, so that they may be twice the largest float from the
// bias.
constexpr float shrink_for(float bias) {
  return bias > 0x1p100f || bias < -0x1p100f ? 0.25f : 1;
}

// Each x becomes the nearest value of the type, halves to even; where that is none, infinity or NaN.
void round_to(DType dtype, float* x, int n);

// The symmetric scale, from the least and the largest |w|.
float symmetric_scale(float least, float most, int bits, DType dtype);

// Where the asymmetric search starts, from the least and the largest w: scales and biases, rounded.
//   0   the whole range, the step rounded so that nothing is clipped; it counts even where it is too fine to
//       be searched
//   1   the edge farther from zero exactly, and a step that makes zero a code: what MLX does
//   2   a range narrower at each end, for 4 bits: 255 steps leave nothing to be won by clipping
constexpr int n_starts(int bits) {
  return bits == 4 ? 3 : 2;
}
void start_of(int start, const float* low, const float* high, int n, int bits, DType dtype, float* scales,
              float* biases);

}  // namespace russet
