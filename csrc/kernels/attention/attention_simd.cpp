// A block's 64 keys, or the columns of its values, are the lanes of a few vectors; one tile of sums serves
// both products:
//
//   scores[r][j] = sum_c q[r][c] key[c][j]        sums[r][c] += sum_j p[r][j] value[j][c]
//
// Each of these sums is one chain of fused multiply-adds, over c or j in their order, and no sum goes across
// lanes but those of the softmax. So a row's bits do not depend on how rows and columns are cut into tiles.
// Numbers are widened in registers, once for the up to six rows of a tile.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/simd.h"
#include "kernels/attention/attention.h"
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

constexpr float kLowest = -std::numeric_limits<float>::max();

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

// The keys of a block that a token sees: [0, sinks) and [begin, end).
struct Seen {
  int sinks, begin, end;
  bool any() const { return sinks > 0 || begin < end; }
  bool all() const { return begin == 0 && end == kBlockTokens; }
};

constexpr float kLanes[kBlockTokens] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                        32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                        48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

// One run of keys, for all rows of a call.
struct Run {
  const AttentionArgs& a;
  const PartialSoftmax& to;
  const int dim, n_rows;
  const size_t row;                  // floats of it in q, in the widened values and in the sums
  float* const q;                    // [n_rows][row], scaled
  float* const p;                    // [kTileRows][kBlockTokens] scores, then weights, of the rows at hand
  float *const keys, *const values;  // a block's, widened
  Seen seen[kAttentionRows];         // of the block at hand, by each token
  const float *key_scales, *value_scales, *value_minima;  // of the block at hand, or null

  Run(const AttentionArgs& args, const PartialSoftmax& partial)
      : a(args),
        to(partial),
        dim(args.format.head_dim),
        n_rows(args.n_tokens * args.n_heads),
        row(PartialSoftmax::row_floats(dim)),
        q(args.scratch),
        p(q + kAttentionRows * row),
        keys(p + 8 * kBlockTokens),
        values(keys + kBlockTokens * row) {}

  void operator()(int run) {
    for (int r = 0; r < n_rows; ++r) {
      const float* from = a.q + size_t(r / a.n_heads) * a.stride + size_t(r % a.n_heads) * size_t(dim);
      for (int c = 0; c < dim; ++c) q[size_t(r) * row + size_t(c)] = from[c] * a.scale;
    }
    std::fill_n(to.sums, size_t(n_rows) * row, 0.0f);
    std::fill_n(to.tops, n_rows, kLowest);
    std::fill_n(to.totals, n_rows, 0.0f);
    const int begin = run * kRunTokens, end = std::min(begin + kRunTokens, a.pos + a.n_tokens);
    for (int key = begin; key < end; key += kBlockTokens) {
      const BlockId id = a.table[key / kBlockTokens];
      if (id != kNoBlock && look(key)) block(a.blocks + size_t(id) * a.format.block_bytes());
    }
  }

  // Whether any token sees anything of the block that begins with `key`.
  bool look(int key) {
    bool any = false;
    for (int t = 0; t < a.n_tokens; ++t) {
      const int end = std::clamp(a.pos + t + 1 - key, 0, int(kBlockTokens));
      const int begin = std::clamp(first_key(a.pos + t, a.window) - key, 0, end);
      seen[t] = {std::clamp(a.n_sinks - key, 0, begin), begin, end};
      any = any || seen[t].any();
    }
    return any;
  }
  const Seen& seen_by(int r) const { return seen[r / a.n_heads]; }

  void block(const char* data) {
    const auto numbers = [&](bool here, size_t at) {
      return here ? static_cast<const float*>(static_cast<const void*>(data + at)) : nullptr;
    };
    const KvFormat& f = a.format;
    const bool int4 = f.values == KvType::int4;
    key_scales = numbers(f.keys == KvType::int8, f.key_scales());
    value_scales = numbers(int4 || f.values == KvType::int8, f.value_scales());
    value_minima = numbers(int4, f.value_minima());
    Plane k{f.keys, data, kBlockTokens, kBlockTokens};
    Plane v{f.values, data + f.values_at(), size_t(dim), dim};
    const bool widens = kWidensForMany && n_rows > kTileRows;
    if (widens && k.type != KvType::f32) {
      widen_plane(k.type, k.data, dim, kBlockTokens, keys, kBlockTokens);
      k = {KvType::f32, keys, kBlockTokens, kBlockTokens};
    }
    if ((widens && v.type != KvType::f32) || dim % Vec::width != 0 || int4) {
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

  // x where a token sees the key of this lane, else other
  static Vec where_seen(const Seen& s, int lane, Vec x, Vec other) {
    if (s.all()) return x;
    const Vec lanes = load(kLanes + lane);
    const Vec from_begin = where_less(lanes, splat(float(s.end)), x, other);
    const Vec before = where_less(lanes, splat(float(s.sinks)), x, other);
    return where_less(lanes, splat(float(s.begin)), before, from_begin);
  }

  // Turns a row's scores into weights, and the row's sums to the new top. Not inlined: in two copies the
  // compiler might fuse other products with their sums, and bits would depend on the path.
  [[gnu::noinline]] void softmax(int r, float* weights) {
    constexpr int kVecs = kBlockTokens / Vec::width;
    const Seen& s = seen_by(r);
    Vec x[kVecs], tops = splat(kLowest);
    for (int i = 0; i < kVecs; ++i) {
      const int lane = i * Vec::width;
      x[i] = load(weights + lane);
      if (key_scales) x[i] = x[i] * load(key_scales + lane);
      if (a.softcap > 0) x[i] = splat(a.softcap) * tanh(x[i] / splat(a.softcap));
      x[i] = where_seen(s, lane, x[i], splat(-std::numeric_limits<float>::infinity()));
      tops = max(x[i], tops);
    }
    const float top = std::max(to.tops[r], max_of(tops));
    if (top != to.tops[r]) shrink(r, std::exp(to.tops[r] - top));
    to.tops[r] = top;
    Vec total = splat(0);
    for (int i = 0; i < kVecs; ++i) {
      x[i] = exp(x[i] - splat(top));
      total = total + x[i];
    }
    to.totals[r] += sum(total);
    if (value_minima) add_minima(r, s, x);
    for (int i = 0; i < kVecs; ++i) {
      const int lane = i * Vec::width;
      store(weights + lane, value_scales ? x[i] * load(value_scales + lane) : x[i]);
    }
  }

  void shrink(int r, float factor) {
    float* sums = to.sums + size_t(r) * row;
    for (int c = 0; c < dim; c += Vec::width) store(sums + c, load(sums + c) * splat(factor));
    to.totals[r] *= factor;
  }

  // int4: p (minimum + scale * code), of which the first part is the same for every column
  void add_minima(int r, const Seen& s, const Vec* weights) {
    Vec total = splat(0);
    for (int lane = 0; lane < kBlockTokens; lane += Vec::width) {
      const Vec minima = where_seen(s, lane, load(value_minima + lane), splat(0));
      total = fma(weights[lane / Vec::width], minima, total);
    }
    const Vec offset = splat(sum(total));
    float* sums = to.sums + size_t(r) * row;
    for (int c = 0; c < dim; c += Vec::width) store(sums + c, load(sums + c) + offset);
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
      float* sums = to.sums + size_t(first + i) * row;
      Product{p + i * kBlockTokens + begin, kBlockTokens, sums, row, end - begin, first == 0}(v, begin, rows);
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
