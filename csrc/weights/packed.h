// Packed: a matrix in affine groups, laid out in the order in which dot-product instructions read it.
//
//   w[r, c] = scale[r, g] * q[r, c] + bias[r, g],   g = c / group_size,   q in [0, 2^bits)
//
// is what MLX checkpoints store. The kernels want codes around zero, so with center = 2^(bits - 1) it becomes
//
//   w[r, c] = scale[r, g] * (q[r, c] - center) + zero[r, g],   zero = bias + center * scale
//
// and zero is exactly 0 where the groups are symmetric: then no biases are kept.
//
// Sixteen rows make a band, and four columns of a band a tile of 64 bytes, byte 4 * r + i for row r and
// column i: one vector of AVX-512, four of NEON, and a row of an AMX tile. An instruction multiplies it by
// four activations, broadcast, and adds into sixteen sums, one per row: no sum ever crosses lanes.
//
//   codes   8 bits  [n_bands, n_cols / 4, 64]  a tile each, int8 q - 128
//           4 bits  [n_bands, n_cols / 8, 64]  two tiles each: the earlier in the low nibbles, the later in
//                                              the high ones, q as it is, so that one AND or shift unpacks it
//   scales          [n_bands, n_groups, 16] f32, f16 or bf16;  biases likewise, or null: symmetric
//
// Rows past the last have codes, scales and biases of zero. All parts are 64-byte aligned.
//
// Codes of 8 bits can be sliced, as a head's are that is screened (backends/cpu/screen.h). Then each slice
// has a part of every q, and the first ones are an estimate of the whole:
//
//   codes   bits 4-7 of q  [n_bands, n_cols / 8, 64]   two tiles each, as codes of 4 bits have them
//   middle  bits 2-3       [n_bands, n_cols / 16, 64]  four tiles each, the earliest in the lowest bits
//   low     bits 0-1       [n_bands, n_cols / 16, 64]  likewise
//   radii   [n_bands, 2, 16] f32: how far the first slice, and the first two, can be off; see kSlices
#pragma once
#include "core/view.h"

namespace russet {

constexpr int kBandRows = 16;

// Slices of a matrix. Where later ones are left out, the middle of what they can be stands for them. Then,
// for every x, the product of a row with x is off by at most radius * |x|, |x| the Euclidean length: Cauchy
// and Schwarz, plus what float sums of both can round away.
constexpr int kSlices = 3;
constexpr int kMaxSlicedCols = 1 << 15;

struct Packed {
  const uint8_t* codes = nullptr;
  const void *scales = nullptr, *biases = nullptr;
  const uint8_t *middle = nullptr, *low = nullptr;  // of a sliced matrix, as are
  const float* radii = nullptr;
  DType dtype = DType::f32;  // of scales and biases
  int n_rows = 0, n_cols = 0;
  int bits = 8, group_size = 128;
  int blas_tokens = 0;  // from so many tokens on BLAS is faster here (kernels/qmatmul/crossover.h); 0: never

  explicit operator bool() const { return codes != nullptr; }
  int n_bands() const { return (n_rows + kBandRows - 1) / kBandRows; }
  int n_groups() const { return n_cols / group_size; }
  float center() const { return float(1 << (bits - 1)); }
  bool sliced() const { return radii != nullptr; }

  size_t band_bytes() const { return size_t(kBandRows) * size_t(n_cols) * size_t(bits) / 8; }
  size_t band_scales() const { return size_t(n_groups()) * kBandRows; }
  const uint8_t* band(int b) const { return codes + size_t(b) * (sliced() ? slice_bytes(0) : band_bytes()); }
  const void* band_of(const void* of_groups, int b) const {  // of scales or biases
    return static_cast<const char*>(of_groups) + size_t(b) * band_scales() * size_of(dtype);
  }
  const float* radii_of(int b, int n_slices) const {
    return radii + (size_t(b) * (kSlices - 1) + size_t(n_slices) - 1) * kBandRows;
  }
  // Of a band.
  size_t slice_bytes(int slice) const { return band_bytes() / (slice == 0 ? 2 : 4); }
  const uint8_t* slice(int index, int b) const {
    return (index == 0 ? codes : index == 1 ? middle : low) + size_t(b) * slice_bytes(index);
  }
  // Rows [begin, end); begin must be a multiple of kBandRows.
  Packed rows(int begin, int end) const {
    Packed part = *this;
    part.codes = band(begin / kBandRows);
    part.scales = band_of(scales, begin / kBandRows);
    if (biases) part.biases = band_of(biases, begin / kBandRows);
    if (sliced()) {
      part.middle = slice(1, begin / kBandRows);
      part.low = slice(2, begin / kBandRows);
      part.radii = radii_of(begin / kBandRows, 1);
    }
    part.n_rows = end - begin;
    return part;
  }
};

// A matrix as MLX stores it: rows adjacent, codes from the lowest bits up in little-endian words.
struct Affine {
  const uint8_t* codes = nullptr;                   // [n_rows, n_cols * bits / 8]
  const void *scales = nullptr, *biases = nullptr;  // [n_rows, n_groups] of dtype
  DType dtype = DType::f32;
  int n_rows = 0, n_cols = 0;
  int bits = 8, group_size = 128;

  explicit operator bool() const { return codes != nullptr; }
};

size_t packed_bytes(int n_rows, int n_cols, int bits, int group_size, DType dtype, bool symmetric,
                    bool sliced = false);

// Where the parts of such a matrix lie in `memory`: codes, scales, biases, each 64-byte aligned.
Packed packed_at(const void* memory, int n_rows, int n_cols, int bits, int group_size, DType dtype,
                 bool symmetric, bool sliced = false);

// Whether every bias is exactly -center * scale, so that biases need not be kept.
bool is_symmetric(const Affine& a);

// Lays `a` out in `memory`, packed_bytes() of it, 64-byte aligned. With several threads.
Packed pack(const Affine& a, bool symmetric, void* memory, int n_threads, bool sliced = false);

// y[c] = w[row, c]; exactly the affine formula, rounded once per element.
void unpack_row(const Packed& w, int row, float* y);

// y[r, c] = w[16 * b + r, c] for the rows of band b, rows adjacent; rows past the last are left out.
void unpack_band(const Packed& w, int b, float* y);

}  // namespace russet
