// AMX for bf16 weights: 16 tokens by 16 rows by 32 columns in one instruction, summed in f32.
//
// Activations are not rounded: the 24 bits of a float are split into three bf16 of 8 bits each, which is
// exact, and each is multiplied with the weights. Three products of 16-bit matrices are still several times
// as fast as one of floats.
//
// kDepth columns at a time: the activations of up to kTokens tokens are split once; then panels of 32 rows
// are turned into B tiles (pairs of columns, interleaved over the rows) and stay in the L1 cache while the
// tokens pass, 32 at a time over four tiles of sums. Bound by the tile products.
#include <algorithm>

#include "core/amx.h"
#include "kernels/matmul/matmul.h"

namespace russet {
namespace {

constexpr int kTokens = 512, kDepth = 512, kStep = 32;  // kStep: columns of a tile
constexpr int kParts = 3;

struct alignas(64) Scratch {
  uint16_t x[kParts][kTokens][kDepth];
  uint32_t w[2][kDepth / kStep][16][16];  // [band][step][pair of columns][row]
  float sums[32][32];
};
static_assert(sizeof(Scratch) <= kMatmulScratchFloats * sizeof(float));

__m256i upper_halves(__m512 x) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16));
}
__m512 truncated(__m512 x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xffff0000))));
}

// Columns [first, first + depth) of tokens [t, t + n) -> parts that add up to them; zeros up to whole tiles.
void split(const MatmulArgs& a, int t, int n, int first, int depth, Scratch& s) {
  const int n_whole = (n + 31) / 32 * 32, depth_whole = (depth + kStep - 1) / kStep * kStep;
  for (int i = 0; i < n_whole; ++i)
    for (int c = 0; c < depth_whole; c += 16) {
      const int left = i < n ? std::clamp(depth - c, 0, 16) : 0;
      const float* x = a.x + size_t(t + std::min(i, n - 1)) * size_t(a.w.n_cols) + size_t(first + c);
      __m512 rest = _mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), x);
      for (auto& part : s.x) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(&part[i][c]), upper_halves(rest));
        rest = _mm512_sub_ps(rest, truncated(rest));
      }
    }
}

// 16 rows of 16 words -> 16 columns
void transpose(__m512i (&r)[16]) {
  __m512i s[16];
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {  // r[i + k]: words k, k + 4, k + 8, k + 12 of rows i to i + 3
      r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + 2 + j]);
    }
  for (int k = 0; k < 4; ++k) {
    const __m512i low = _mm512_shuffle_i32x4(r[k], r[4 + k], 0x88),
                  high = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(r[k], r[4 + k], 0xdd),
                  high_odd = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0xdd);
    s[k] = _mm512_shuffle_i32x4(low, high, 0x88);
    s[k + 8] = _mm512_shuffle_i32x4(low, high, 0xdd);
    s[k + 4] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    s[k + 12] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
  std::copy(s, s + 16, r);
}

void pack_band(const MatmulArgs& a, int row, int first, int depth, uint32_t (&to)[kDepth / kStep][16][16]) {
  for (int c = 0; c < depth; c += kStep) {
    const int left = std::min(depth - c, kStep);
    const auto mask = __mmask32(left == kStep ? ~0u : (1u << left) - 1);
    __m512i rows[16];
    for (int r = 0; r < 16; ++r)
      rows[r] = row + r < a.w.n_rows
                    ? _mm512_maskz_loadu_epi16(mask, static_cast<const bf16*>(a.w.row(row + r)) + first + c)
                    : _mm512_setzero_si512();
    transpose(rows);
    for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(to[c / kStep][pair], rows[pair]);
  }
}

// s.sums = 32 tokens from `i` on times the panel's 32 rows
void block(int i, int depth, Scratch& s) {
  constexpr size_t kStride = sizeof s.x[0][0];
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (int c = 0; c < depth; c += kStep) {
    load_tile<6>(s.w[0][c / kStep], 64);
    load_tile<7>(s.w[1][c / kStep], 64);
    for (const auto& part : s.x) {
      load_tile<4>(&part[i][c], kStride);
      load_tile<5>(&part[i + 16][c], kStride);
      add_product_bf16<0, 4, 6>();
      add_product_bf16<1, 4, 7>();
      add_product_bf16<2, 5, 6>();
      add_product_bf16<3, 5, 7>();
    }
  }
  store_tile<0>(&s.sums[0][0], sizeof s.sums[0]);
  store_tile<1>(&s.sums[0][16], sizeof s.sums[0]);
  store_tile<2>(&s.sums[16][0], sizeof s.sums[0]);
  store_tile<3>(&s.sums[16][16], sizeof s.sums[0]);
}

// y = or += s.sums
void add(const MatmulArgs& a, int t, int n, int row, bool is_first, const Scratch& s) {
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < 32; v += 16) {
      const int left = std::clamp(a.w.n_rows - row - v, 0, 16);
      const auto mask = __mmask16((1u << left) - 1);
      float* y = a.y + size_t(t + i) * a.y_stride + size_t(row + v);
      __m512 sums = _mm512_load_ps(&s.sums[i][v]);
      if (!is_first) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, y));
      _mm512_mask_storeu_ps(y, mask, sums);
    }
}

}  // namespace

void matmul_amx(const MatmulArgs& a) {
  Scratch& s = *reinterpret_cast<Scratch*>(a.scratch);
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.rows[tile] = 16, config.row_bytes[tile] = 64;
  configure_tiles(config);
  for (int t = 0; t < a.n_tokens; t += kTokens)
    for (int first = 0; first < a.w.n_cols; first += kDepth) {
      const int n = std::min(kTokens, a.n_tokens - t), depth = std::min(kDepth, a.w.n_cols - first);
      split(a, t, n, first, depth, s);
      for (int row = 0; row < a.w.n_rows; row += 32) {
        pack_band(a, row, first, depth, s.w[0]);
        pack_band(a, row + 16, first, depth, s.w[1]);
        for (int i = 0; i < n; i += 32) {
          block(i, depth, s);
          add(a, t + i, std::min(32, n - i), row, first == 0, s);
        }
      }
    }
  release_tiles();
}

}  // namespace russet
