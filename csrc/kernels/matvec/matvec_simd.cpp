// The matvec loop, built once per ISA: a tile of rows x tokens of sums lives in registers. One token takes
// eight rows, which share each load of x and whose eight sums hide the latency of the multiply-add; several
// take fewer rows, and a weight is loaded and widened once for all tokens of the tile.
//
// The rows of a tile are not neighbours: each goes down a run of its own, up to 32 adjacent rows long, so
// that memory is read in a few long streams. Neighbouring rows would be streams that end after one row, and
// the hardware prefetcher, which follows streams, would lag behind at every beginning: half the speed at
// 1,024 bf16 columns (docs/performance.md).
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
constexpr int kRunRows = 32;
constexpr int kPassRows = 4;  // of each run, that stay in the L1 cache while all tokens pass

// y[t * y_stride + r * run] = w[r * run] . x[t] for r < n_rows, t < n_tokens
template <int n_rows, int n_tokens, typename T>
inline void tile(const T* w, int run, const float* x, size_t n_cols, float* y, size_t y_stride) {
  const size_t step = size_t(run) * n_cols;
  Vec acc[n_tokens][n_rows];
  for (int t = 0; t < n_tokens; ++t)
    for (int r = 0; r < n_rows; ++r) acc[t][r] = splat(0);
  const auto add = [&](size_t c, auto read) {
    if constexpr (n_tokens == 1) {  // in this order eight sums and all else fit sixteen registers
      const Vec xc = read(x + c);
      for (int r = 0; r < n_rows; ++r) acc[0][r] = fma(read(w + size_t(r) * step + c), xc, acc[0][r]);
      return;
    }
    Vec wc[n_rows];
    for (int r = 0; r < n_rows; ++r) wc[r] = read(w + size_t(r) * step + c);
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
    for (int r = 0; r < n_rows; ++r) y[size_t(t) * y_stride + size_t(r * run)] = sum(acc[t][r]);
}

// The last tokens take a tile of exactly their number.
template <int n_rows, int n_tokens, typename T>
inline void tile_of(int n, const T* w, int run, const float* x, size_t n_cols, float* y, size_t y_stride) {
  if constexpr (n_tokens > 0) {
    if (n == n_tokens) return tile<n_rows, n_tokens>(w, run, x, n_cols, y, y_stride);
    tile_of<n_rows, n_tokens - 1>(n, w, run, x, n_cols, y, y_stride);
  }
}

// Rows [begin, begin + n_runs * run), as n_runs runs side by side.
template <int n_runs, int max_tokens, typename T>
inline void runs(const MatvecArgs& a, int begin, int run) {
  const size_t n_cols = size_t(a.w.n_cols);
  for (int pass = begin; pass < begin + run; pass += kPassRows)
    for (int t = 0; t < a.n_tokens; t += max_tokens)
      for (int r = pass; r < std::min(pass + kPassRows, begin + run); ++r)
        tile_of<n_runs, max_tokens>(std::min(max_tokens, a.n_tokens - t), static_cast<const T*>(a.w.row(r)),
                                    run, a.x + size_t(t) * n_cols, n_cols,
                                    a.y + size_t(t) * a.y_stride + size_t(r), a.y_stride);
}

template <int n_runs, int max_tokens, typename T>
inline void all_rows(const MatvecArgs& a) {
  int r = 0;
  while (a.w.n_rows - r >= n_runs) {
    const int run = std::min(kRunRows, (a.w.n_rows - r) / n_runs);
    runs<n_runs, max_tokens, T>(a, r, run);
    r += n_runs * run;
  }
  if (r < a.w.n_rows) runs<1, max_tokens, T>(a, r, a.w.n_rows - r);
}

}  // namespace

void RUSSET_FOR_ISA(matvec)(const MatvecArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) {
    if (a.n_tokens == 1) {
      all_rows<kDecodeRows, 1, T>(a);
    } else {
      all_rows<kTileRows, kTileTokens, T>(a);
    }
  });
}

}  // namespace russet
