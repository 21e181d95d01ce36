// A matrix W [n_rows, n_cols], stored in any of the ways of args.h, read in pieces: kColumns adjacent columns
// of a row, which a thread loads at once and uses four by four, as quads.
//
//   Floats<S>        8 columns; a piece may reach over the end of its row, and is zero there
//   Affine<bits, S>  8 bytes of codes: 8 columns of int8, 16 of int4. Needs n_cols % group_size = 0 and
//                    group_size >= 32: a piece then ends in its row, and has one scale and one bias
//
//   w[r, c] = scale * q[r, c] + bias, hence sum w x = scale * sum q x + bias * sum x, which total() is
#pragma once
#include "args.h"

// Four elements, with no more alignment than one has.
template <typename S>
vec<S, 4> load4(device const S* p) {
  return *(device const packed_vec<S, 4>*)p;
}

// The first n of four elements, then zeros.
template <typename S>
vec<S, 4> load4(device const S* p, int n) {
  if (n >= 4) return load4(p);
  return vec<S, 4>(n > 0 ? p[0] : S(0), n > 1 ? p[1] : S(0), n > 2 ? p[2] : S(0), S(0));
}

template <typename S>
struct Floats {
  using Codes = S;
  using Scale = S;
  enum : uint { kColumns = 8, kQuads = 2, kRagged = true };

  struct Piece {
    vec<S, 4> quads[kQuads];
    float4 quad(uint i) const { return float4(quads[i]); }
    float4 weights(uint i) const { return float4(quads[i]); }
    float total(float sum_qx, float) const { return sum_qx; }
  };

  device const S* elements;
  uint n_cols;

  Floats(device const S* codes, device const S*, device const S*, uint n_cols, uint)
      : elements(codes), n_cols(n_cols) {}

  // The matrix without its first `row` rows; from there on an element's number must fit 32 bits.
  Floats from_row(uint row) const {
    return Floats(elements + ulong(row) * n_cols, nullptr, nullptr, n_cols, 0);
  }

  Piece load(uint row, uint col) const {
    Piece piece;
    for (uint i = 0; i < kQuads; ++i)
      piece.quads[i] = load4(elements + row * n_cols + col + 4 * i, int(n_cols) - int(col + 4 * i));
    return piece;
  }

  float element(uint row, uint col) const { return float(elements[row * n_cols + col]); }
};

template <uint bits, typename S>
struct Affine {
  using Codes = uint2;
  using Scale = S;
  enum : uint { kColumns = 64 / bits, kQuads = kColumns / 4, kRagged = false };

  struct Piece {
    uint2 codes;
    S scale, bias;

    float4 quad(uint i) const {
      if (bits == 8) return float4(as_type<uchar4>(codes[i]));
      const uint four = codes[i / 2] >> (i % 2 * 16);
      return float4(four & 15, four >> 4 & 15, four >> 8 & 15, four >> 12 & 15);
    }
    float4 weights(uint i) const { return float(scale) * quad(i) + float(bias); }
    float total(float sum_qx, float sum_x) const { return float(scale) * sum_qx + float(bias) * sum_x; }
  };

  device const uint2* codes;
  device const S *scales, *biases;
  uint n_cols, group_size, group_shift;  // group_size = 1 << group_shift

  Affine(device const uint2* codes, device const S* scales, device const S* biases, uint n_cols,
         uint group_size)
      : codes(codes),
        scales(scales),
        biases(biases),
        n_cols(n_cols),
        group_size(group_size),
        group_shift(ctz(group_size)) {}

  Affine from_row(uint row) const {
    const ulong first = ulong(row) * n_cols, group = first >> group_shift;
    return Affine(codes + first / kColumns, scales + group, biases + group, n_cols, group_size);
  }

  Piece load(uint row, uint col) const {
    const uint at = row * n_cols + col, group = at >> group_shift;
    return {codes[at / kColumns], scales[group], biases[group]};
  }

  float element(uint row, uint col) const {
    const Piece piece = load(row, col - col % kColumns);
    const uint bit = col % kColumns * bits;
    const uint q = piece.codes[bit / 32] >> bit % 32 & ((1 << bits) - 1);
    return float(piece.scale) * q + float(piece.bias);
  }
};

// The names that kernels are instantiated under.
using w_f32 = Floats<float>;
using w_f16 = Floats<half>;
using w_bf16 = Floats<bfloat>;
using w_int8_f32 = Affine<8, float>;
using w_int8_f16 = Affine<8, half>;
using w_int8_bf16 = Affine<8, bfloat>;
using w_int4_f32 = Affine<4, float>;
using w_int4_f16 = Affine<4, half>;
using w_int4_bf16 = Affine<4, bfloat>;
