// A block's 64 keys, or the columns of its values, are the lanes of a few vectors; one tile of sums serves
// both products:
//
//   scores[r][j] = sum_c q[r][c] key[c][j]        sums[r][c] += sum_j p[r][j] value[j][c]
//
// Each of these sums is one chain of fused multiply-adds, over c or j in their order, and no sum goes across
// lanes but those of the softmax. So a row's bits do not depend on how rows and columns are cut into tiles.
// Numbers are widened in registers, once for the up to six rows of a tile.
#include <algorithm>

#include "kernels/attention/online_softmax.h"
#include "kernels/attention/widen_plane.h"

namespace russet {
namespace {

constexpr int kTileRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVecs = 4;  // 24 of 32 registers are sums
#else
constexpr int kTileVecs = 2;  // 12 of 16
#endif

// A block that several tiles read is widened before where that takes the units which multiply: NEON's.
constexpr bool kWidensForMany = Vec::width == 4;

// Rows of a block that one tile after the other reads while they come from memory, so that it is read in one
// run. AVX2, f16, 2 rows x 128 columns: 10.0 GB/s without, 18.1 with.
constexpr int kRowsAtOnce = 16;

// A matrix, row after row, of numbers as they are stored; what int8 numbers are scaled by is not in it.
struct Plane {
  KvType type;
  const void* data;
  size_t stride;  // elements from a row to the next
  int n_columns;  // whole vectors
};

// c[r][i] += sum_k a[r][k] b[k][i] for k < depth
struct Product {
  const float* a;
  size_t a_stride;
  float* c;
  size_t c_stride;
  int depth;
  bool from_memory;  // where the first rows of a call find b

  // Left to itself, GCC unrolls too late to see that the sums stay in registers all along, and copies them
  // through the stack before and behind the loop: 5 % of decode and prefill.
  template <int n_rows, int n_vecs, typename T>
  void tile(const T* b, size_t b_stride, int column, int begin, int end) const {
    Vec sums[n_rows][n_vecs];
    float* c0 = c + column;
#pragma GCC unroll 16
    for (int r = 0; r < n_rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < n_vecs; ++v) sums[r][v] = load(c0 + size_t(r) * c_stride + v * Vec::width);
    b += size_t(begin) * b_stride + size_t(column);
    for (int k = begin; k < end; ++k, b += b_stride) {
      Vec bk[n_vecs];
      for (int v = 0; v < n_vecs; ++v) bk[v] = load(b + v * Vec::width);
#pragma GCC unroll 16
      for (int r = 0; r < n_rows; ++r) {
        const Vec ar = splat(a[size_t(r) * a_stride + size_t(k)]);
#pragma GCC unroll 16
        for (int v = 0; v < n_vecs; ++v) sums[r][v] = fma(bk[v], ar, sums[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < n_rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < n_vecs; ++v) store(c0 + size_t(r) * c_stride + v * Vec::width, sums[r][v]);
  }

  // The widest tiles first.
  template <int n_rows, int n_vecs, typename T>
  void columns(const T* b, size_t b_stride, int column, int n_columns, int begin, int end) const {
    for (; column + n_vecs * Vec::width <= n_columns; column += n_vecs * Vec::width)
      tile<n_rows, n_vecs>(b, b_stride, column, begin, end);
    if constexpr (n_vecs > 1) columns<n_rows, n_vecs / 2>(b, b_stride, column, n_columns, begin, end);
  }

  template <int n_rows = kTileRows, typename T>
  void run(const T* b, size_t b_stride, int n_columns, int rows) const {
    constexpr int kSums = kTileRows * kTileVecs / n_rows;
    constexpr int kVecs = kSums >= 16 ? 16 : kSums >= 8 ? 8 : kSums >= 4 ? 4 : 2;
    if (rows == n_rows) {
      const int at_once = from_memory && n_columns > kVecs * Vec::width ? kRowsAtOnce : depth;
      for (int k = 0; k < depth; k += at_once)
        columns<n_rows, kVecs>(b, b_stride, 0, n_columns, k, std::min(k + at_once, depth));
    } else if constexpr (n_rows > 1) {
      run<n_rows - 1>(b, b_stride, n_columns, rows);
    }
  }

  // rows of a and c, 1 to kTileRows; rows of b from `begin` on
  void operator()(const Plane& b, int begin, int rows) const {
    const auto go = [&]<typename T>(const T* data) {
      run(data + size_t(begin) * b.stride, b.stride, b.n_columns, rows);
    };
    switch (b.type) {
      case KvType::f32:
        return go(static_cast<const float*>(b.data));
      case KvType::f16:
        return go(static_cast<const f16*>(b.data));
      case KvType::bf16:
        return go(static_cast<const bf16*>(b.data));
      case KvType::int8:
        return go(static_cast<const int8_t*>(b.data));
      case KvType::int4:
        return;  // always widened
    }
  }
};

// One run of keys, for all rows of a call.
struct Run : OnlineSoftmax {
  float* const q;                    // [n_rows][row], scaled
  float* const p;                    // [kTileRows][kBlockTokens] scores, then weights, of the rows at hand
  float *const keys, *const values;  // a block's, widened

  Run(const AttentionArgs& args, const PartialSoftmax& partial)
      : OnlineSoftmax(args, partial),
        q(args.scratch),
        p(q + kAttentionRows * row),
        keys(p + 8 * kBlockTokens),
        values(keys + kBlockTokens * row) {}

  void operator()(int run) {
    for (int r = 0; r < n_rows; ++r) {
      const float* from = a.q + size_t(r / a.n_heads) * a.stride + size_t(r % a.n_heads) * size_t(dim);
      for (int c = 0; c < dim; ++c) q[size_t(r) * row + size_t(c)] = from[c] * a.scale;
    }
    each_block(run, [&](const char* data) { block(data); });
  }

  void block(const char* data) {
    const KvFormat& f = a.format;
    Plane k{f.keys, data, kBlockTokens, kBlockTokens};
    Plane v{f.values, data + f.values_at(), size_t(dim), dim};
    const bool widens = kWidensForMany && n_rows > kTileRows;
    if (widens && k.type != KvType::f32) {
      widen_plane(k.type, k.data, dim, kBlockTokens, keys, kBlockTokens);
      k = {KvType::f32, keys, kBlockTokens, kBlockTokens};
    }
    if ((widens && v.type != KvType::f32) || dim % Vec::width != 0 || f.values == KvType::int4) {
      widen_plane(v.type, v.data, kBlockTokens, dim, values, row);
      v = {KvType::f32, values, row, (dim + Vec::width - 1) / Vec::width * Vec::width};
    }
    // As many rows in each: 8 are 4 and 4.
    const int n_tiles = (n_rows + kTileRows - 1) / kTileRows, at_once = (n_rows + n_tiles - 1) / n_tiles;
    for (int r = 0; r < n_rows; r += at_once) few_rows(r, std::min(at_once, n_rows - r), k, v);
  }

  // first, first + 1 ...: n of them, at most kTileRows
  void few_rows(int first, int n, const Plane& k, const Plane& v) {
    // A block is longer than these rows: what one of them sees, the first or the last sees.
    if (!seen_by(first).any() && !seen_by(first + n - 1).any()) return;
    std::fill_n(p, n * kBlockTokens, 0.0f);
    Product{q + size_t(first) * row, row, p, kBlockTokens, dim, first == 0}(k, 0, n);
    for (int i = 0; i < n; ++i)
      if (seen_by(first + i).any()) softmax(first + i, p + i * kBlockTokens);
    add_values(first, n, v, [](const Seen& s) { return s.sinks; }, [](const Seen&) { return 0; });
    add_values(first, n, v, [](const Seen& s) { return s.end; }, [](const Seen& s) { return s.begin; });
  }

  // Adds the values of a range of keys: those that all rows see together, then and before what only some
  // see. A value that a row does not see may be anything, NaN too, so it is not even multiplied by zero.
  template <typename End, typename Begin>
  void add_values(int first, int n, const Plane& v, End end_of, Begin begin_of) {
    int from = 0, upto = kBlockTokens;
    for (int i = 0; i < n; ++i) {
      from = std::max(from, begin_of(seen_by(first + i)));
      upto = std::min(upto, end_of(seen_by(first + i)));
    }
    if (from >= upto) from = upto = kBlockTokens;
    const auto add = [&](int i, int rows, int begin, int end) {
      if (begin >= end) return;
      Product{p + i * kBlockTokens + begin, kBlockTokens, sums(first + i), row, end - begin, first == 0}(
          v, begin, rows);
    };
    for (int i = 0; i < n; ++i)
      add(i, 1, begin_of(seen_by(first + i)), std::min(from, end_of(seen_by(first + i))));
    add(0, n, from, upto);
    for (int i = 0; i < n; ++i) add(i, 1, upto, end_of(seen_by(first + i)));
  }
};

}  // namespace

void RUSSET_FOR_ISA(attention)(const AttentionArgs& a, int run, const PartialSoftmax& partial) {
  Run(a, partial)(run);
}

}  // namespace russet
