// The matvec loop, built once per ISA.
//
// One token: eight rows at a time share each load of x, and their eight accumulators hide the latency of the
// multiply-add. A few tokens: a tile of rows x tokens lives in registers, so that a weight is loaded and
// widened once for all tokens of the tile, and a dozen rows stay in the L1 cache while the tokens pass.
//
// The hardware prefetcher follows the rows without help, but it needs a miss to notice that one has begun: we
// touch the first line of each of the next rows ahead of it (docs/performance.md has what this is worth, and
// what was tried besides).
#include <algorithm>

#include "core/simd.h"
#include "kernels/matvec/matvec.h"

namespace russet {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 4, kTileTokens = 4;  // 16 sums, 4 weights and an x in 32 registers
#else
constexpr int kTileRows = 3, kTileTokens = 4;  // 12, 3 and 1 in 16
#endif
constexpr int kDecodeRows = 8;
constexpr int kBlockRows = 12;
static_assert(kBlockRows % kTileRows == 0);

template <int n_rows, int n_tokens, typename T>
inline void tile(const T* w, const float* x, float* y, size_t n_cols, size_t y_stride) {
  Vec acc[n_tokens][n_rows];
  for (int t = 0; t < n_tokens; ++t)
    for (int r = 0; r < n_rows; ++r) acc[t][r] = splat(0);
  const auto add = [&](size_t c, auto read) {
    Vec wc[n_rows];
    for (int r = 0; r < n_rows; ++r) wc[r] = read(w + size_t(r) * n_cols + c);
    for (int t = 0; t < n_tokens; ++t) {
      const Vec xc = read(x + size_t(t) * n_cols + c);
      for (int r = 0; r < n_rows; ++r) acc[t][r] = fma(wc[r], xc, acc[t][r]);
    }
  };
  size_t c = 0;
  for (; c + Vec::width <= n_cols; c += Vec::width) add(c, [](const auto* p) { return load(p); });
  if (const int rest = int(n_cols - c); rest > 0)
    add(c, [rest](const auto* p) { return load_part(p, rest); });
  for (int t = 0; t < n_tokens; ++t)
    for (int r = 0; r < n_rows; ++r) y[size_t(t) * y_stride + size_t(r)] = sum(acc[t][r]);
}

// All rows of w, rows_at_once at a time, for exactly n_tokens.
template <int rows_at_once, int n_tokens, typename T>
inline void all_rows(const View& w, const float* x, float* y, size_t y_stride) {
  const auto row = [&](int r) { return static_cast<const T*>(w.row(r)); };
  const size_t n_cols = size_t(w.n_cols);
  int r = 0;
  for (; r + rows_at_once <= w.n_rows; r += rows_at_once) {
    for (int next = r + rows_at_once; next < std::min(r + 2 * rows_at_once, w.n_rows); ++next)
      __builtin_prefetch(row(next));
    tile<rows_at_once, n_tokens>(row(r), x, y + r, n_cols, y_stride);
  }
  for (; r < w.n_rows; ++r) tile<1, n_tokens>(row(r), x, y + r, n_cols, y_stride);
}

// The last tokens take a tile of exactly their number.
template <int n_tokens, typename T>
inline void last_tokens(int n, const View& w, const float* x, float* y, size_t y_stride) {
  if constexpr (n_tokens > 0) {
    if (n == n_tokens) return all_rows<kTileRows, n_tokens, T>(w, x, y, y_stride);
    last_tokens<n_tokens - 1, T>(n, w, x, y, y_stride);
  }
}

template <typename T>
inline void few_tokens(const MatvecArgs& a) {
  for (int r = 0; r < a.w.n_rows; r += kBlockRows) {
    const View block = a.w.rows(r, std::min(r + kBlockRows, a.w.n_rows));
    for (int t = 0; t < a.n_tokens; t += kTileTokens)
      last_tokens<kTileTokens, T>(std::min(kTileTokens, a.n_tokens - t), block,
                                  a.x + size_t(t) * size_t(a.w.n_cols), a.y + size_t(t) * a.y_stride + r,
                                  a.y_stride);
  }
}

}  // namespace

void RUSSET_FOR_ISA(matvec)(const MatvecArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) {
    if (a.n_tokens == 1) {
      all_rows<kDecodeRows, 1, T>(a.w, a.x, a.y, a.y_stride);
    } else {
      few_tokens<T>(a);
    }
  });
}

}  // namespace russet
