// vpdpbusd: sixteen sums of four products of unsigned by signed bytes, one instruction per tile and token.
// Codes of 8 bits are turned from q - 128 into q by flipping their highest bit, those of 4 bits are q; either
// way the center is taken out exactly, as center * (sum of x), before the first product.
//
// A few tokens: the tiles go from memory through registers, each used once per token. Bound by memory, which
// is read as one long stream per thread; prefetching by hand made it slower (docs/performance.md).
//
// Many tokens: a panel of two bands x kDepth columns is unpacked once into the L1 cache, so that the inner
// loop is the same for 8 and 4 bits; over it go kTileTokens tokens at a time, whose 12 int32 and 12 float
// sums live in registers. Bound by the dot products: 12 of them per two loads of weights and six of
// activations, 86 % of what vpdpbusd can do on a Zen 4.
#include <immintrin.h>

#include <algorithm>

#include "core/simd.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/qmatmul_avx512.h"

// Sums must stay in registers, and GCC unrolls no loop this long by itself.
#define RUSSET_UNROLL _Pragma("GCC unroll 16")

namespace russet {
namespace {

constexpr int kFewTokens = 4;  // that share one pass over the codes
constexpr int kTileTokens = 6, kTileBands = 2;
constexpr int kDepth = 512;

__m512i four_of(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// The q of eight columns: two tiles. `codes` moves on behind them.
struct Tiles {
  __m512i early, late;
};
template <int bits>
inline Tiles next_tiles(const uint8_t*& codes) {
  const __m512i first = _mm512_load_si512(codes);
  if constexpr (bits == 8) {
    const __m512i second = _mm512_load_si512(codes + 64), flip = _mm512_set1_epi8(-128);
    codes += 128;
    return {_mm512_xor_si512(first, flip), _mm512_xor_si512(second, flip)};
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    codes += 64;
    return {_mm512_and_si512(first, low), _mm512_and_si512(_mm512_srli_epi16(first, 4), low)};
  }
}

// ---- a few tokens ----

template <int bits, int n_tokens, typename T>
inline void band(const Packed& w, int b, const int8_t* x, const float* x_scales, const int32_t* x_sums,
                 float* y, size_t y_stride) {
  const uint8_t* codes = w.band(b);
  const T* scales = static_cast<const T*>(w.band_of(w.scales, b));
  const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) : nullptr;
  const size_t n_cols = size_t(w.n_cols), n_groups = size_t(w.n_groups()), group = size_t(w.group_size);
  const __m512 center = _mm512_set1_ps(w.center());
  __m512 acc[n_tokens];
  for (auto& sums : acc) sums = _mm512_setzero_ps();
  for (size_t g = 0; g < n_groups; ++g, x += group) {
    __m512i early[n_tokens], late[n_tokens];  // two chains of sums hide the latency
    for (int t = 0; t < n_tokens; ++t) {
      early[t] = _mm512_set1_epi32(-(1 << (bits - 1)) * x_sums[size_t(t) * n_groups + g]);
      late[t] = _mm512_setzero_si512();
    }
    for (size_t c = 0; c < group; c += 8) {
      const Tiles q = next_tiles<bits>(codes);
      for (int t = 0; t < n_tokens; ++t) {
        const int8_t* eight = x + size_t(t) * n_cols + c;
        early[t] = _mm512_dpbusd_epi32(early[t], q.early, four_of(eight));
        late[t] = _mm512_dpbusd_epi32(late[t], q.late, four_of(eight + 4));
      }
    }
    const __m512 scale = load(scales + 16 * g).v;
    const __m512 zero =
        biases ? _mm512_fmadd_ps(center, scale, load(biases + 16 * g).v) : _mm512_setzero_ps();
    for (int t = 0; t < n_tokens; ++t) {
      const __m512 d = _mm512_cvtepi32_ps(_mm512_add_epi32(early[t], late[t]));
      const float x_scale = x_scales[size_t(t) * n_groups + g];
      acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(x_scale)), d, acc[t]);
      if (!biases) continue;
      const float x_sum = x_scale * float(x_sums[size_t(t) * n_groups + g]);
      acc[t] = _mm512_fmadd_ps(zero, _mm512_set1_ps(x_sum), acc[t]);
    }
  }
  for (int t = 0; t < n_tokens; ++t) _mm512_mask_storeu_ps(y + size_t(t) * y_stride, rows_left(w, b), acc[t]);
}

template <int bits, int n_tokens, typename T>
inline void bands(const QmatmulArgs& a, int t) {
  const size_t at = size_t(t) * size_t(a.w.n_groups());
  for (int b = 0; b < a.w.n_bands(); ++b)
    band<bits, n_tokens, T>(a.w, b, a.x.codes + size_t(t) * size_t(a.w.n_cols), a.x.scales + at,
                            a.x.sums + at, a.y + size_t(t) * a.y_stride + size_t(b * kBandRows), a.y_stride);
}

template <int bits, typename T>
inline void few(const QmatmulArgs& a, int t, int n) {
  switch (n) {
    case 1:
      return bands<bits, 1, T>(a, t);
    case 2:
      return bands<bits, 2, T>(a, t);
    case 3:
      return bands<bits, 3, T>(a, t);
    default:
      return bands<bits, 4, T>(a, t);
  }
}

// ---- many tokens ----

constexpr int kMaxGroups = kDepth / 32;

struct alignas(64) Panel {
  uint8_t q[kDepth / 4][kTileBands][64];
  float scales[kMaxGroups][kTileBands][16];
  float zeros[kMaxGroups][kTileBands][16];
};
static_assert(sizeof(Panel) <= kQmatmulScratchBytes);

// Bands [b, b + kTileBands) and columns [first, first + depth); bands past the last are zero.
template <typename T>
inline void unpack(const Packed& w, int b, int first, int depth, Panel& panel) {
  const int n_groups = depth / w.group_size, first_group = first / w.group_size;
  for (int i = 0; i < kTileBands; ++i) {
    if (b + i >= w.n_bands()) {
      for (int c = 0; c < depth / 4; ++c) _mm512_store_si512(panel.q[c][i], _mm512_setzero_si512());
      for (int g = 0; g < n_groups; ++g) {
        _mm512_store_ps(panel.scales[g][i], _mm512_setzero_ps());
        _mm512_store_ps(panel.zeros[g][i], _mm512_setzero_ps());
      }
      continue;
    }
    const uint8_t* codes = w.band(b + i) + size_t(first) * size_t(2 * w.bits);
    for (int c = 0; c < depth / 4; c += 2) {
      const Tiles q = w.bits == 8 ? next_tiles<8>(codes) : next_tiles<4>(codes);
      _mm512_store_si512(panel.q[c][i], q.early);
      _mm512_store_si512(panel.q[c + 1][i], q.late);
    }
    const T* scales = static_cast<const T*>(w.band_of(w.scales, b + i)) + 16 * first_group;
    const T* biases =
        w.biases ? static_cast<const T*>(w.band_of(w.biases, b + i)) + 16 * first_group : nullptr;
    for (int g = 0; g < n_groups; ++g) {
      const __m512 scale = load(scales + 16 * g).v;
      _mm512_store_ps(panel.scales[g][i], scale);
      if (!biases) continue;
      const __m512 center = _mm512_set1_ps(w.center());
      _mm512_store_ps(panel.zeros[g][i], _mm512_fmadd_ps(center, scale, load(biases + 16 * g).v));
    }
  }
}

// y[t] (set by the first columns, added to by the rest) for n_tokens tokens and the panel's rows
template <int n_tokens>
inline void tile(const QmatmulArgs& a, const Panel& panel, int t, int b, int first, int depth) {
  const Packed& w = a.w;
  const size_t n_cols = size_t(w.n_cols), n_groups = size_t(w.n_groups());
  const int8_t* x = a.x.codes + size_t(t) * n_cols + size_t(first);
  size_t of_x = size_t(t) * n_groups + size_t(first / w.group_size);
  float* y = a.y + size_t(t) * a.y_stride + size_t(b * kBandRows);
  const __mmask16 mask[kTileBands] = {rows_left(w, b), rows_left(w, b + 1)};
  const int center_bits = w.bits - 1;
  __m512 acc[n_tokens][kTileBands];
  RUSSET_UNROLL
  for (int i = 0; i < n_tokens; ++i)
    for (int v = 0; v < kTileBands; ++v)
      acc[i][v] = first == 0 ? _mm512_setzero_ps()
                             : _mm512_maskz_loadu_ps(mask[v], y + size_t(i) * a.y_stride + size_t(16 * v));
  for (int g = 0; g < depth / w.group_size; ++g, ++of_x) {
    __m512i d[n_tokens][kTileBands];
    RUSSET_UNROLL
    for (int i = 0; i < n_tokens; ++i)
      for (int v = 0; v < kTileBands; ++v)
        d[i][v] = _mm512_set1_epi32(-a.x.sums[of_x + size_t(i) * n_groups] << center_bits);
    const int end = (g + 1) * w.group_size / 4;
    for (int c = g * w.group_size / 4; c < end; ++c) {
      const __m512i q[kTileBands] = {_mm512_load_si512(panel.q[c][0]), _mm512_load_si512(panel.q[c][1])};
      RUSSET_UNROLL
      for (int i = 0; i < n_tokens; ++i) {
        const __m512i four = four_of(x + size_t(i) * n_cols + size_t(4 * c));
        for (int v = 0; v < kTileBands; ++v) d[i][v] = _mm512_dpbusd_epi32(d[i][v], q[v], four);
      }
    }
    for (int v = 0; v < kTileBands; ++v) {
      const __m512 scale = _mm512_load_ps(panel.scales[g][v]);
      RUSSET_UNROLL
      for (int i = 0; i < n_tokens; ++i) {
        const __m512 x_scale = _mm512_set1_ps(a.x.scales[of_x + size_t(i) * n_groups]);
        acc[i][v] = _mm512_fmadd_ps(_mm512_mul_ps(scale, x_scale), _mm512_cvtepi32_ps(d[i][v]), acc[i][v]);
      }
    }
    if (!w.biases) continue;
    for (int v = 0; v < kTileBands; ++v) {
      const __m512 zero = _mm512_load_ps(panel.zeros[g][v]);
      RUSSET_UNROLL
      for (int i = 0; i < n_tokens; ++i) {
        const size_t of_group = of_x + size_t(i) * n_groups;
        const float x_sum = a.x.scales[of_group] * float(a.x.sums[of_group]);
        acc[i][v] = _mm512_fmadd_ps(zero, _mm512_set1_ps(x_sum), acc[i][v]);
      }
    }
  }
  RUSSET_UNROLL
  for (int i = 0; i < n_tokens; ++i)
    for (int v = 0; v < kTileBands; ++v)
      _mm512_mask_storeu_ps(y + size_t(i) * a.y_stride + size_t(16 * v), mask[v], acc[i][v]);
}

template <int n_tokens>
inline void tile_of(int n, const QmatmulArgs& a, const Panel& panel, int t, int b, int first, int depth) {
  if constexpr (n_tokens > 0) {
    if (n == n_tokens) return tile<n_tokens>(a, panel, t, b, first, depth);
    tile_of<n_tokens - 1>(n, a, panel, t, b, first, depth);
  }
}

template <typename T>
inline void many(const QmatmulArgs& a) {
  Panel& panel = *reinterpret_cast<Panel*>(a.scratch);
  for (int b = 0; b < a.w.n_bands(); b += kTileBands)
    for (int first = 0; first < a.w.n_cols; first += kDepth) {
      const int depth = std::min(kDepth, a.w.n_cols - first);
      unpack<T>(a.w, b, first, depth, panel);
      for (int t = 0; t < a.n_tokens; t += kTileTokens)
        tile_of<kTileTokens>(std::min(kTileTokens, a.n_tokens - t), a, panel, t, b, first, depth);
    }
}

}  // namespace

void qmatmul_vnni(const QmatmulArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) {
    if (a.n_tokens > 2 * kFewTokens) return many<T>(a);
    for (int t = 0; t < a.n_tokens; t += kFewTokens) {
      const int n = std::min(kFewTokens, a.n_tokens - t);
      a.w.bits == 8 ? few<8, T>(a, t, n) : few<4, T>(a, t, n);
    }
  });
}

}  // namespace russet
