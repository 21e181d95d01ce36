// Per tile of keys: scores by dot products that share each load of a key over the queries; then the softmax
// of the tile; then the values, again each loaded once for all queries, with the sums of a few vectors
// of columns held in registers while the tile's keys pass.
//
// std::fma in the tails: left to the compiler, whether a product and its sum are one rounding or two would
// differ between Tile<1> and Tile<4>, and a query's bits with it.
#include <algorithm>
#include <cmath>

#include "core/simd.h"
#include "kernels/attention/attention.h"

namespace russet {
namespace {

constexpr float kHidden = -3.4e38f;  // a score whose weight is exactly 0

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 16;  // vectors of them, of 32 registers
#else
constexpr int kSums = 8;  // of 16
#endif

template <int n>
struct Tile {
  static constexpr int kColumnVecs = std::min(8, kSums / (n == 3 ? 4 : n)), kRowsAtOnce = 8;

  explicit Tile(const AttentionArgs& args) : a(args) {}

  const AttentionArgs& a;
  int first[n];                         // first key each query sees
  alignas(64) float q[n][kMaxHeadDim];  // scaled
  alignas(64) float acc[n][kMaxHeadDim];
  alignas(64) float p[n][kAttentionKeys];
  float top[n], total[n];

  // Four keys at a time, so that their sums are taken together. Past the last key the last one is taken
  // again: nobody looks at its score.
  void scores(int key0, int n_keys) {
    for (int j = 0; j < n_keys; j += 4) {
      const float* k[4];
      for (int u = 0; u < 4; ++u) k[u] = a.k + key_offset(a, key0 + std::min(j + u, n_keys - 1));
      Vec s[n][4];
      for (int i = 0; i < n; ++i)
        for (int u = 0; u < 4; ++u) s[i][u] = splat(0);
      int c = 0;
      if constexpr (n <= 2) {  // bound by memory: key after key, the way they lie there
        for (int u = 0; u < 4; ++u)
          for (c = 0; c + Vec::width <= a.head_dim; c += Vec::width) {
            const Vec kc = load(k[u] + c);
            for (int i = 0; i < n; ++i) s[i][u] = fma(load(q[i] + c), kc, s[i][u]);
          }
      } else {  // bound by loads: four keys share those of the queries
        for (; c + Vec::width <= a.head_dim; c += Vec::width) {
          Vec kc[4];
          for (int u = 0; u < 4; ++u) kc[u] = load(k[u] + c);
          for (int i = 0; i < n; ++i) {
            const Vec qc = load(q[i] + c);
            for (int u = 0; u < 4; ++u) s[i][u] = fma(qc, kc[u], s[i][u]);
          }
        }
      }
      for (int i = 0; i < n; ++i) sum_4(s[i], p[i] + j);
      for (; c < a.head_dim; ++c)
        for (int i = 0; i < n; ++i)
          for (int u = 0; u < 4; ++u) p[i][j + u] = std::fma(q[i][c], k[u][c], p[i][j + u]);
    }
  }

  // Turns a query's scores into weights, zero for the keys it does not see; returns by how much its sums
  // shrink.
  float softmax(int i, int key0, int n_keys) {
    const int begin = std::max(first[i] - key0, 0), end = std::min(a.pos[i] + 1 - key0, n_keys);
    if (begin >= end) {
      std::fill_n(p[i], kAttentionKeys, 0.0f);
      return 1;
    }
    if (a.softcap > 0)
      for (int j = 0; j < kAttentionKeys; j += Vec::width)
        store(p[i] + j, splat(a.softcap) * tanh(load(p[i] + j) / splat(a.softcap)));
    std::fill_n(p[i], begin, kHidden);
    std::fill(p[i] + end, p[i] + kAttentionKeys, kHidden);
    Vec tops = splat(kHidden);
    for (int j = 0; j < kAttentionKeys; j += Vec::width) tops = max(tops, load(p[i] + j));
    const float new_top = std::max(top[i], max_of(tops));
    Vec totals = splat(0);
    for (int j = 0; j < kAttentionKeys; j += Vec::width) {
      const Vec e = exp(load(p[i] + j) - splat(new_top));
      store(p[i] + j, e);
      totals = totals + e;
    }
    const float shrink = std::exp(top[i] - new_top);
    top[i] = new_top;
    total[i] = total[i] * shrink + sum(totals);
    return shrink;
  }

  // A few rows at a time, so that memory is read in one run whatever the number of columns that fit in
  // registers.
  template <int n_vecs>
  void values_of(int c, const float* v, int j0, int n_keys) {
    Vec s[n][n_vecs];
    for (int i = 0; i < n; ++i)
      for (int u = 0; u < n_vecs; ++u) s[i][u] = load(acc[i] + c + u * Vec::width);
    for (int j = j0; j < std::min(j0 + kRowsAtOnce, n_keys); ++j) {
      Vec vc[n_vecs];
      for (int u = 0; u < n_vecs; ++u) vc[u] = load(v + j * a.head_dim + c + u * Vec::width);
      for (int i = 0; i < n; ++i)
        for (int u = 0; u < n_vecs; ++u) s[i][u] = fma(vc[u], splat(p[i][j]), s[i][u]);
    }
    for (int i = 0; i < n; ++i)
      for (int u = 0; u < n_vecs; ++u) store(acc[i] + c + u * Vec::width, s[i][u]);
  }

  // As many columns as whole vectors have, the widest blocks first; returns the first column left.
  template <int n_vecs>
  int values_up_to(int c, const float* v, int j0, int n_keys) {
    for (; c + n_vecs * Vec::width <= a.head_dim; c += n_vecs * Vec::width)
      values_of<n_vecs>(c, v, j0, n_keys);
    if constexpr (n_vecs > 1) return values_up_to<n_vecs / 2>(c, v, j0, n_keys);
    return c;
  }

  void values(int key0, int n_keys, const float* shrink) {
    const float* v = a.v + key_offset(a, key0);
    for (int i = 0; i < n; ++i)
      if (shrink[i] != 1)
        for (int c = 0; c < a.head_dim; ++c) acc[i][c] *= shrink[i];
    for (int j = 0; j < n_keys; j += kRowsAtOnce) {
      for (int c = values_up_to<kColumnVecs>(0, v, j, n_keys); c < a.head_dim; ++c)
        for (int i = 0; i < n; ++i)
          for (int u = j; u < std::min(j + kRowsAtOnce, n_keys); ++u)
            acc[i][c] = std::fma(p[i][u], v[u * a.head_dim + c], acc[i][c]);
    }
  }

  void run() {
    int begin = a.pos[0], end = 0;
    for (int i = 0; i < n; ++i) {
      first[i] = first_key(a.pos[i], a.window);
      begin = std::min(begin, first[i]);
      end = std::max(end, a.pos[i] + 1);
      for (int c = 0; c < a.head_dim; ++c) q[i][c] = a.q[i][c] * a.scale;
      std::fill_n(acc[i], a.head_dim, 0.0f);
      std::fill_n(p[i], kAttentionKeys, 0.0f);
      top[i] = kHidden;
      total[i] = 0;
    }
    for (int key0 = begin / kAttentionKeys * kAttentionKeys; key0 < end; key0 += kAttentionKeys) {
      const int n_keys = std::min<int>(kAttentionKeys, end - key0);
      float shrink[n];
      scores(key0, n_keys);
      for (int i = 0; i < n; ++i) shrink[i] = softmax(i, key0, n_keys);
      values(key0, n_keys, shrink);
    }
    for (int i = 0; i < n; ++i)
      for (int c = 0; c < a.head_dim; ++c) a.out[i][c] = acc[i][c] / total[i];
  }
};

template <int n>
void run(const AttentionArgs& a) {
  Tile<n>(a).run();
}

}  // namespace

void RUSSET_FOR_ISA(attention)(const AttentionArgs& a) {
  static_assert(kAttentionRows == 4);
  switch (a.n_queries) {
    case 1:
      return run<1>(a);
    case 2:
      return run<2>(a);
    case 3:
      return run<3>(a);
    case 4:
      return run<4>(a);
  }
}

}  // namespace russet
