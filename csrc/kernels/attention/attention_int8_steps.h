// The steps of attention in 8 bits, for a file that has defined what its instruction set gives:
//
//   Ints                       Vec::width int32 sums
//   dot(sums, four, tile)      sums[i] + the sum over u < 4 of byte u of four times tile[4 i + u]
//   to_floats(Ints)            a Vec
//   to_bytes(Vec, bytes)       whole numbers from -127 to 127; what is no number may become any byte
//   interleave(rows, stride, n, tile)
//                              tile[4 i + u] = rows[u * stride + i], i < n, a multiple of 16
//   kOffset                    what is added to bytes of q, where dot() takes those of `four` as unsigned
//   kTileRows                  rows that a matrix unit takes at once, or 0 where there is none
//   multiply_tiles(a, a_stride, n_groups, tiles, tile_stride, sums)
//                              for as many rows: sums[i][v] = dot() of all n_groups of four bytes of row i
//                              with vector v of their tiles; tiles go on up to a multiple of 16, with zeros
//
// Block after block: its keys become tiles of four columns, 64 keys wide, once for all rows; each row has its
// scores from them, its softmax, and its share of the values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "kernels/attention/attention_int8.h"
#include "kernels/attention/widen_plane.h"

namespace russet {
namespace {

constexpr float kHidden = -3.4e38f;  // a score whose weight is exactly 0
constexpr int kMaxColumns = kMaxHeadDim + 15;
constexpr int kRowsAtOnce = 4;  // that share each load of keys and values

// n values, a multiple of Vec::width, as round(x / scale); returns scale = max |x| / 127, or NaN where one is
// not finite.
inline float to_codes(const float* x, int n, int8_t* codes) {
  Vec most = splat(0), poison = splat(0);
  for (int i = 0; i < n; i += Vec::width) {
    most = max(max(splat(0) - load(x + i), load(x + i)), most);  // in this order a NaN is passed over
    poison = fma(load(x + i), splat(0), poison);
  }
  const float largest = max_of(most);
  const Vec per_step = splat(largest > 0 ? 127 / largest : 0);
  for (int i = 0; i < n; i += Vec::width) to_bytes(round(load(x + i) * per_step), codes + i);
  return largest / 127 + sum(poison);
}

template <typename T>
const T* at(const char* bytes) {
  return static_cast<const T*>(static_cast<const void*>(bytes));
}

template <bool int8_values>
class Rows {
 public:
  void run(const AttentionArgs& args, int run, const PartialSoftmax& partial) {
    a = args;
    of_rows = partial;
    dim = a.format.head_dim;
    n_tiles = (dim + 3) / 4;
    has_mean = false;
    round_queries();
    const int end = std::min((run + 1) * kRunTokens, a.pos + a.n_tokens), oldest = first_seen(0);
    for (int key0 = run * kRunTokens; key0 < end; key0 += kBlockTokens) {
      const bool in_reach = key0 + kBlockTokens > oldest || key0 < a.n_sinks;
      const BlockId id = a.table[key0 / kBlockTokens];
      if (!in_reach || id == kNoBlock) continue;
      block = a.blocks + size_t(id) * a.format.block_bytes();
      n_keys = std::min<int>(kBlockTokens, end - key0);
      load_keys();
      load_values();
      const int n_rows = a.n_tokens * a.n_heads;
      int row = 0;
      if constexpr (kTileRows > 0)
        for (; row + kTileRows <= n_rows; row += kTileRows) rows_from<kTileRows>(row, key0);
      for (; row + kRowsAtOnce <= n_rows; row += kRowsAtOnce) rows_from<kRowsAtOnce>(row, key0);
      for (; row < n_rows; ++row) rows_from<1>(row, key0);
    }
  }

 private:
  template <int n>
  void rows_from(int row, int key0) {
    scores<n>(row);
    for (int i = 0; i < n; ++i) shrink[i] = softmax(row + i, key0, p[i]);
    if constexpr (int8_values)
      values_in_int8<n>(row);
    else
      for (int i = 0; i < n; i += std::min(n, kRowsAtOnce)) values_in_float<std::min(n, kRowsAtOnce)>(row, i);
  }

  int first_seen(int t) const { return first_key(a.pos + t, a.window); }
  float* sums_of(int row) const { return of_rows.sums + size_t(row) * PartialSoftmax::row_floats(dim); }
  const float* query(int row) const {
    return a.q + size_t(row / a.n_heads) * a.stride + size_t(row % a.n_heads * dim);
  }

  void round_queries() {
    for (int row = 0; row < a.n_tokens * a.n_heads; ++row) {
      alignas(64) float wide_row[kMaxColumns + 1] = {};
      alignas(64) int8_t codes[kMaxColumns + 1];
      std::copy_n(query(row), dim, wide_row);
      q_scale[row] = to_codes(wide_row, columns(), codes) * a.scale;
      for (int c = 0; c < columns(); ++c) q[row][c] = uint8_t(codes[c] + kOffset);
      q_mean[row] = 0;
      of_rows.tops[row] = kHidden;
      of_rows.totals[row] = 0;
      std::fill_n(sums_of(row), dim, 0.0f);
    }
  }

  // keys: tiles of the block's codes; key_scale: of each key.
  void load_keys() {
    const int8_t* codes = at<int8_t>(block);
    if (a.format.keys == KvType::int8) {
      std::copy_n(at<float>(block + a.format.key_scales()), kBlockTokens, key_scale);
    } else {
      widen_plane(a.format.keys, block, dim, kBlockTokens, wide, kBlockTokens);
      if (!has_mean) take_mean();
      round_keys();
      codes = rounded;
    }
    for (int tile = 0; tile < n_tiles; ++tile) {
      const int8_t* rows = codes + tile * 4 * kBlockTokens;
      int8_t padded[4 * kBlockTokens] = {};
      if (4 * tile + 4 > dim) {
        std::memcpy(padded, rows, size_t((dim - 4 * tile) * kBlockTokens));
        rows = padded;
      }
      interleave(rows, kBlockTokens, kBlockTokens, keys + tile * 4 * kBlockTokens);
    }
    if constexpr (kTileRows > 0)
      std::fill(keys + n_tiles * 4 * kBlockTokens, keys + (n_tiles + 15) / 16 * 64 * kBlockTokens, int8_t(0));
    if constexpr (kOffset != 0) {
      constexpr int32_t ones = 0x01010101;
      each_vector([&](int v) { sums_of_keys[v] = product(ones, v); });
    }
  }

  // wide less the mean, key by key, which are its columns: as to_codes() does rows.
  void round_keys() {
    if (n_keys < kBlockTokens)  // what no key has been written to yet
      for (int c = 0; c < dim; ++c)
        std::fill(wide + c * kBlockTokens + n_keys, wide + (c + 1) * kBlockTokens, mean[c]);
    for (int j = 0; j < kBlockTokens; j += Vec::width) {
      Vec most = splat(0), poison = splat(0);
      for (int c = 0; c < dim; ++c) {
        const Vec x = load(wide + c * kBlockTokens + j) - splat(mean[c]);
        most = max(max(splat(0) - x, x), most);
        poison = fma(x, splat(0), poison);
      }
      float largest[Vec::width], per_step[Vec::width];
      store(largest, most);
      for (int i = 0; i < Vec::width; ++i) per_step[i] = largest[i] > 0 ? 127 / largest[i] : 0;
      const Vec steps = load(per_step);
      for (int c = 0; c < dim; ++c) {
        const Vec x = load(wide + c * kBlockTokens + j) - splat(mean[c]);
        to_bytes(round(x * steps), rounded + c * kBlockTokens + j);
      }
      store(key_scale + j, fma(most, splat(1.0f / 127), poison));
    }
  }

  void take_mean() {
    for (int c = 0; c < dim; ++c) {
      float sum = 0;
      for (int j = 0; j < n_keys; ++j) sum += wide[c * kBlockTokens + j];
      mean[c] = sum / float(n_keys);
    }
    has_mean = true;
    for (int row = 0; row < a.n_tokens * a.n_heads; ++row)
      q_mean[row] = std::inner_product(mean, mean + dim, query(row), 0.0f) * a.scale;
  }

  static constexpr int kVectors = kBlockTokens / Vec::width;
  template <typename F>
  static void each_vector(F&& f) {
    for (int v = 0; v < kVectors; ++v) f(v);
  }
  // The same four bytes times every tile.
  Ints product(int32_t four, int v) const {
    Ints sums{};
    for (int tile = 0; tile < n_tiles; ++tile)
      sums = dot(sums, four, keys + (tile * kBlockTokens + v * Vec::width) * 4);
    return sums;
  }

  // sums[i][v] = the sum over n_groups of dot() of four bytes of row i of a and vector v of their tile
  template <int n, int n_vectors, typename Byte>
  static void multiply(const Byte* a, size_t a_stride, int n_groups, const int8_t* tiles, int tile_stride,
                       Ints (&sums)[n][n_vectors]) {
    if constexpr (kTileRows > 0 && n == kTileRows) {
      multiply_tiles(a, a_stride, n_groups, tiles, tile_stride, sums);
    } else {
      for (auto& row : sums)
        for (Ints& sum : row) sum = Ints{};
      for (int group = 0; group < n_groups; ++group, tiles += tile_stride)
        for (int i = 0; i < n; ++i) {
          int32_t four;
          std::memcpy(&four, a + size_t(i) * a_stride + 4 * group, 4);
          for (int v = 0; v < n_vectors; ++v) sums[i][v] = dot(sums[i][v], four, tiles + v * Vec::width * 4);
        }
    }
  }

  template <int n>
  void scores(int row) {
    Ints sums[n][kVectors];
    multiply(q[row], sizeof q[row], n_tiles, keys, 4 * kBlockTokens, sums);
    for (int i = 0; i < n; ++i)
      each_vector([&](int v) {
        Vec s = to_floats(sums[i][v]);
        if constexpr (kOffset != 0) s = fma(to_floats(sums_of_keys[v]), splat(-float(kOffset)), s);
        const Vec by_key = s * load(key_scale + v * Vec::width);
        store(p[i] + v * Vec::width, fma(by_key, splat(q_scale[row + i]), splat(q_mean[row + i])));
      });
  }

  // A row's scores to weights, zero for the keys it does not see; returns by how much its sums shrink.
  float softmax(int row, int key0, float* scores) {
    const int t = row / a.n_heads, last = a.pos + t - key0;
    const int begin = first_seen(t) - key0, n_sinks = a.n_sinks - key0;
    if (last < 0 || (begin >= kBlockTokens && n_sinks <= 0)) {
      std::fill_n(scores, kBlockTokens, 0.0f);
      return 1;
    }
    if (a.softcap > 0)
      each_vector([&](int v) {
        float* s = scores + v * Vec::width;
        store(s, splat(a.softcap) * tanh(load(s) / splat(a.softcap)));
      });
    if (last < kBlockTokens - 1 || begin > 0)
      for (int j = 0; j < kBlockTokens; ++j)
        if (j > last || (j < begin && j >= n_sinks)) scores[j] = kHidden;
    Vec tops = splat(kHidden);
    each_vector([&](int v) { tops = max(tops, load(scores + v * Vec::width)); });
    float &top = of_rows.tops[row], &total = of_rows.totals[row];
    const float new_top = std::max(top, max_of(tops));
    Vec totals = splat(0);
    each_vector([&](int v) {
      const Vec e = exp(load(scores + v * Vec::width) - splat(new_top));
      store(scores + v * Vec::width, e);
      totals = totals + e;
    });
    const float kept = std::exp(top - new_top);
    top = new_top;
    total = total * kept + sum(totals);
    return kept;
  }

  // wide: the block's values as floats, [n_keys][dim]; for int8, value_tiles: four tokens by dim columns
  // each.
  void load_values() {
    const KvFormat& f = a.format;
    const char* plane = block + f.values_at();
    const bool as_they_lie = int8_values && f.values == KvType::int8;
    const int8_t* codes = at<int8_t>(plane);
    if (as_they_lie) std::copy_n(at<float>(block + f.value_scales()), kBlockTokens, value_scale);
    if (!as_they_lie) widen_values();
    if constexpr (!int8_values) return;
    if (!as_they_lie) {
      std::fill_n(rounded, kBlockTokens * dim, int8_t(0));
      std::fill_n(value_scale, kBlockTokens, 0.0f);
      round_values();
      codes = rounded;
    }
    const int whole = dim / 16 * 16;
    for (int j = 0; j < kBlockTokens; j += 4) {
      int8_t* tile = value_tiles + j * columns();
      interleave(codes + j * dim, dim, whole, tile);
      for (int c = whole; c < dim; ++c)
        for (int u = 0; u < 4; ++u) tile[4 * c + u] = codes[(j + u) * dim + c];
    }
  }
  int columns() const { return (dim + 15) / 16 * 16; }

  void round_values() {
    alignas(64) float row[kMaxColumns + 1] = {};
    alignas(64) int8_t codes[kMaxColumns + 1];
    for (int j = 0; j < n_keys; ++j) {
      std::copy_n(wide + j * dim, dim, row);
      value_scale[j] = to_codes(row, columns(), codes);
      std::copy_n(codes, dim, rounded + j * dim);
    }
  }

  void widen_values() {
    const KvFormat& f = a.format;
    widen_plane(f.values, block + f.values_at(), n_keys, dim, wide, size_t(dim));
    const bool int4 = f.values == KvType::int4;
    if (!int4 && f.values != KvType::int8) return;
    for (int j = 0; j < n_keys; ++j) {
      const float scale = at<float>(block + f.value_scales())[j];
      const float minimum = int4 ? at<float>(block + f.value_minima())[j] : 0;
      for (int c = 0; c < dim; ++c) wide[j * dim + c] = minimum + scale * wide[j * dim + c];
    }
  }

  // n rows, of which the first is `first` of those at hand
  template <int n>
  void values_in_float(int row, int first) const {
    constexpr int kAtOnce = 4;
    int c = 0;
    for (; c + kAtOnce * Vec::width <= dim; c += kAtOnce * Vec::width) {
      Vec sums[n][kAtOnce];
      for (int i = 0; i < n; ++i)
        for (int u = 0; u < kAtOnce; ++u)
          sums[i][u] = load(sums_of(row + first + i) + c + u * Vec::width) * splat(shrink[first + i]);
      for (int j = 0; j < n_keys; ++j)
        for (int u = 0; u < kAtOnce; ++u) {
          const Vec values = load(wide + j * dim + c + u * Vec::width);
          for (int i = 0; i < n; ++i) sums[i][u] = fma(splat(p[first + i][j]), values, sums[i][u]);
        }
      for (int i = 0; i < n; ++i)
        for (int u = 0; u < kAtOnce; ++u) store(sums_of(row + first + i) + c + u * Vec::width, sums[i][u]);
    }
    for (; c < dim; ++c)
      for (int i = 0; i < n; ++i) {
        float sum = sums_of(row + first + i)[c] * shrink[first + i];
        for (int j = 0; j < n_keys; ++j) sum = std::fma(p[first + i][j], wide[j * dim + c], sum);
        sums_of(row + first + i)[c] = sum;
      }
  }

  // Rows of sums have room for whole vectors.
  template <int n>
  void values_in_int8(int row) {
    alignas(64) int8_t codes[n][kBlockTokens];
    float scale[n];
    for (int i = 0; i < n; ++i) {
      each_vector([&](int v) {
        float* w = p[i] + v * Vec::width;
        store(w, load(w) * load(value_scale + v * Vec::width));
      });
      scale[i] = to_codes(p[i], kBlockTokens, codes[i]);
    }
    constexpr int kAtOnce = n == kTileRows ? 4 : 2;
    static_assert(16 % Vec::width == 0);
    for (int c = 0; c < columns(); c += kAtOnce * Vec::width) {
      Ints sums[n][kAtOnce];
      multiply(codes[0], kBlockTokens, kBlockTokens / 4, value_tiles + 4 * c, 4 * columns(), sums);
      for (int i = 0; i < n; ++i)
        for (int u = 0; u < kAtOnce && c + u * Vec::width < columns(); ++u) {
          float* out = sums_of(row + i) + c + u * Vec::width;
          store(out, fma(to_floats(sums[i][u]), splat(scale[i]), load(out) * splat(shrink[i])));
        }
    }
  }

  AttentionArgs a;
  const char* block;
  int dim, n_tiles, n_keys;
  bool has_mean;
  PartialSoftmax of_rows;
  static constexpr int kMostRows = std::max(kRowsAtOnce, kTileRows);
  float shrink[kMostRows], q_scale[kAttentionRows];
  float q_mean[kAttentionRows];  // what each row gives the mean of the keys
  alignas(64) uint8_t q[kAttentionRows][kMaxColumns + 1];
  alignas(64) float mean[kMaxHeadDim], p[kMostRows][kBlockTokens], key_scale[kBlockTokens],
      value_scale[kBlockTokens];
  Ints sums_of_keys[kVectors];
  alignas(64) int8_t keys[kBlockTokens * kMaxHeadDim], rounded[kBlockTokens * kMaxHeadDim];
  alignas(64) int8_t value_tiles[kBlockTokens * kMaxHeadDim + 256];  // up to four vectors are read at once
  alignas(64) float wide[kBlockTokens * kMaxHeadDim];
};

// A thread keeps its rows: they are too large for the stacks of some.
template <bool int8_values>
void run(const AttentionArgs& a, int of_keys, const PartialSoftmax& partial) {
  static thread_local const auto rows = std::make_unique<Rows<int8_values>>();
  rows->run(a, of_keys, partial);
}

}  // namespace
}  // namespace russet
