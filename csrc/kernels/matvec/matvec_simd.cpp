// The matvec loop, built once per ISA. Eight rows at a time share each load of x, and their eight
// accumulators hide the latency of the multiply-add. The hardware prefetcher follows eight row streams
// without help, but it needs a miss to notice that one has begun: we touch the first line of each of the next
// eight rows ahead of it (docs/performance.md has what each of the two is worth, and what was tried besides).
#include <algorithm>

#include "core/simd.h"
#include "kernels/matvec/matvec.h"

namespace russet {
namespace {

constexpr int kRows = 8;

template <int n_rows, typename T>
inline void dot_rows(const T* w, const float* x, float* y, int n_cols) {
  Vec acc[n_rows];
  for (int r = 0; r < n_rows; ++r) acc[r] = splat(0);
  int c = 0;
  for (; c + Vec::width <= n_cols; c += Vec::width) {
    const Vec xc = load(x + c);
    for (int r = 0; r < n_rows; ++r) acc[r] = fma(load(w + size_t(r) * size_t(n_cols) + c), xc, acc[r]);
  }
  if (const int rest = n_cols - c; rest > 0) {
    const Vec xc = load_part(x + c, rest);
    for (int r = 0; r < n_rows; ++r)
      acc[r] = fma(load_part(w + size_t(r) * size_t(n_cols) + c, rest), xc, acc[r]);
  }
  for (int r = 0; r < n_rows; ++r) y[r] = sum(acc[r]);
}

}  // namespace

void RUSSET_FOR_ISA(matvec)(const MatvecArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) {
    int r = 0;
    for (; r + kRows <= a.w.n_rows; r += kRows) {
      for (int next = r + kRows; next < std::min(r + 2 * kRows, a.w.n_rows); ++next)
        __builtin_prefetch(a.w.row(next));
      dot_rows<kRows>(static_cast<const T*>(a.w.row(r)), a.x, a.y + r, a.w.n_cols);
    }
    for (; r < a.w.n_rows; ++r) dot_rows<1>(static_cast<const T*>(a.w.row(r)), a.x, a.y + r, a.w.n_cols);
  });
}

}  // namespace russet
