// Cache-blocked matrix product, built once per ISA (K. Goto, R. van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication", ACM TOMS 34(3), 2008; blocks sized as in BLIS).
//
// A panel of kRows weight rows x kDepth columns is widened and turned around once into `scratch`, so that the
// inner loop reads it straight through; it stays in the L2 cache while every token passes over it. A
// micro-tile of kTileTokens x kTileRows sums lives in registers: per column it loads kTileRows weights and
// broadcasts kTileTokens activations for kTileTokens * kTileRows multiply-adds. Bound by the multiply-add
// units.
#include <algorithm>

#include "core/simd.h"
#include "kernels/matmul/matmul.h"

namespace russet {
namespace {

#if defined(__AVX512F__)
constexpr int kTileTokens = 12, kTileVecs = 2;  // 24 of 32 registers are sums
#elif defined(__AVX2__)
constexpr int kTileTokens = 6, kTileVecs = 2;  // 12 of 16
#else
constexpr int kTileTokens = 8, kTileVecs = 2;  // 16 of NEON's 32
#endif
constexpr int kTileRows = kTileVecs * Vec::width;
constexpr int kDepth = 512;                          // 12 token rows of 2 KiB: half of the L1 cache
constexpr int kRows = (96 / kTileRows) * kTileRows;  // 96 x 512 floats: 192 KiB of L2
static_assert(size_t(kRows) * kDepth <= kMatmulScratchFloats);

// panel[tile][c][r]: the rows of one tile lie side by side; rows past the end are zero. Written straight
// through, read from as many rows at once: the other way round every store would miss the L1 cache.
template <typename T>
inline void pack(const T* w, size_t w_stride, int n_rows, int depth, float* panel) {
  for (int tile = 0; tile < n_rows; tile += kTileRows) {
    const int n = std::min(kTileRows, n_rows - tile);
    for (int c = 0; c < depth; ++c, panel += kTileRows) {
      const T* column = w + size_t(tile) * w_stride + c;
      if (n == kTileRows) {
        for (int r = 0; r < kTileRows; ++r) panel[r] = float_at(column + size_t(r) * w_stride);
      } else {
        for (int r = 0; r < kTileRows; ++r) panel[r] = r < n ? float_at(column + size_t(r) * w_stride) : 0.0f;
      }
    }
  }
}

// Adds x[0..n_tokens, 0..depth] * panel to y (or sets it, for the first depth block).
template <int n_tokens>
inline void micro_tile(const float* x, size_t x_stride, const float* panel, int depth, float* y,
                       size_t y_stride, int n_rows, bool add) {
  Vec acc[n_tokens][kTileVecs];
  for (int t = 0; t < n_tokens; ++t)
    for (int v = 0; v < kTileVecs; ++v) acc[t][v] = splat(0);
  for (int c = 0; c < depth; ++c, panel += kTileRows) {
    Vec w[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) w[v] = load(panel + v * Vec::width);
    for (int t = 0; t < n_tokens; ++t) {
      const Vec xt = splat(x[size_t(t) * x_stride + size_t(c)]);
      for (int v = 0; v < kTileVecs; ++v) acc[t][v] = fma(w[v], xt, acc[t][v]);
    }
  }
  for (int t = 0; t < n_tokens; ++t) {
    for (int v = 0; v < kTileVecs; ++v) {
      float* out = y + size_t(t) * y_stride + v * Vec::width;
      const int n = std::min(Vec::width, n_rows - v * Vec::width);
      if (n == Vec::width) {
        store(out, add ? load(out) + acc[t][v] : acc[t][v]);
      } else if (n > 0) {
        store_part(out, add ? load_part(out, n) + acc[t][v] : acc[t][v], n);
      }
    }
  }
}

// The last tokens take a micro-tile of exactly their number.
template <int n_tokens>
inline void last_tokens(int n, const float* x, size_t x_stride, const float* panel, int depth, float* y,
                        size_t y_stride, int n_rows, bool add) {
  if constexpr (n_tokens > 0) {
    if (n == n_tokens) return micro_tile<n_tokens>(x, x_stride, panel, depth, y, y_stride, n_rows, add);
    last_tokens<n_tokens - 1>(n, x, x_stride, panel, depth, y, y_stride, n_rows, add);
  }
}

template <typename T>
inline void blocked(const MatmulArgs& a, const T* w) {
  const size_t x_stride = size_t(a.w.n_cols);
  for (int depth0 = 0; depth0 < a.w.n_cols; depth0 += kDepth) {
    const int depth = std::min(kDepth, a.w.n_cols - depth0);
    for (int row0 = 0; row0 < a.w.n_rows; row0 += kRows) {
      const int n_rows = std::min(kRows, a.w.n_rows - row0);
      pack(w + size_t(row0) * x_stride + depth0, x_stride, n_rows, depth, a.scratch);
      for (int t = 0; t < a.n_tokens; t += kTileTokens) {
        const int n = std::min(kTileTokens, a.n_tokens - t);
        const float* x = a.x + size_t(t) * x_stride + depth0;
        for (int tile = 0; tile < n_rows; tile += kTileRows) {
          float* y = a.y + size_t(t) * a.y_stride + row0 + tile;
          last_tokens<kTileTokens>(n, x, x_stride, a.scratch + size_t(tile) * size_t(depth), depth, y,
                                   a.y_stride, n_rows - tile, depth0 > 0);
        }
      }
    }
  }
}

}  // namespace

void RUSSET_FOR_ISA(matmul)(const MatmulArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) { blocked(a, static_cast<const T*>(a.w.data)); });
}

}  // namespace russet
