// What the variants for arm64 share: from the int32 sums of a group to y. A band is four registers of four
// rows.
#pragma once
#include <algorithm>
#include <cstring>

#include "core/simd.h"
#include "kernels/qmatmul/qmatmul.h"

namespace russet {
namespace {

constexpr int kTileTokens = 4;  // that share one pass over the codes
constexpr int kDepth = 1024;    // columns of a band that stay in the L1 cache while all tokens go over them

struct BandSums {
  Vec quad[4];
};

inline int rows_in(const Packed& w, int b) {
  return std::min(kBandRows, w.n_rows - b * kBandRows);
}
inline BandSums load_rows(const float* y, int n) {
  float rows[kBandRows] = {};
  if (n < kBandRows) y = static_cast<float*>(std::memcpy(rows, y, size_t(n) * sizeof(float)));
  return {load(y), load(y + 4), load(y + 8), load(y + 12)};
}
inline void store_rows(float* y, const BandSums& sums, int n) {
  float rows[kBandRows];
  float* to = n < kBandRows ? rows : y;
  for (int v = 0; v < 4; ++v) store(to + 4 * v, sums.quad[v]);
  if (n < kBandRows) std::memcpy(y, rows, size_t(n) * sizeof(float));
}

// Of one group; `zero` stays unset where groups are symmetric, which is where `biases` are null.
struct Scales {
  Vec scale[4], zero[4];
};
template <typename T>
inline Scales scales_at(const T* scales, const T* biases, size_t g, float center) {
  Scales of;
  for (size_t v = 0; v < 4; ++v) of.scale[v] = load(scales + g * kBandRows + 4 * v);
  if (!biases) return of;
  for (size_t v = 0; v < 4; ++v)
    of.zero[v] = fma(splat(center), of.scale[v], load(biases + g * kBandRows + 4 * v));
  return of;
}

// The group's share of one token, as the header has it: first the sums of codes, then, where groups are not
// symmetric, x_sum: that of activations times their scale. In two loops over tokens, for clang unrolls each
// of them but not one of both, and sums that a loop indexes are stored to memory at every step.
inline void add_codes(BandSums& acc, const int32x4_t (&d)[4], const Scales& of, float x_scale) {
  for (int v = 0; v < 4; ++v)
    acc.quad[v] = fma(of.scale[v] * splat(x_scale), Vec{vcvtq_f32_s32(d[v])}, acc.quad[v]);
}
inline void add_zeros(BandSums& acc, const Scales& of, float x_sum) {
  for (int v = 0; v < 4; ++v) acc.quad[v] = fma(of.zero[v], splat(x_sum), acc.quad[v]);
}

}  // namespace
}  // namespace russet
