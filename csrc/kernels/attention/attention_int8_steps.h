// The steps of attention in 8 bits, for a file that has defined what its instruction set gives:
//
//   Ints                  Vec::width int32 sums
//   Ints dot(Ints sums, int32_t four, const int8_t* tile)
//                         sums[i] += the sum over u < 4 of byte u of four times tile[4 i + u]
//   Vec to_floats(Ints)
//   kOffset               what is added to bytes of q, where dot() takes those of `four` as unsigned
//   interleave(rows, stride, n, tile)
//                         tile[4 i + u] = rows[u * stride + i], i < n, a multiple of 16
//
// Block after block: its keys become tiles of four columns, 64 keys wide, once for all rows; each row has its
// scores from them, its softmax, and its share of the values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "kernels/attention/attention_int8.h"

namespace russet {
namespace {

constexpr float kHidden = -3.4e38f;  // a score whose weight is exactly 0
constexpr int kMaxColumns = kMaxHeadDim + 15;

// n values as round(x / scale); returns scale = max |x| / 127, or NaN where one is not finite.
inline float to_codes(const float* x, int n, int8_t* codes) {
  float most = 0, poison = 0;
  for (int i = 0; i < n; ++i) {
    most = std::max(most, std::fabs(x[i]));
    poison += x[i] * 0;
  }
  const float per_step = most > 0 ? 127 / most : 0;
  for (int i = 0; i < n; ++i) {
    const float steps = x[i] * per_step;
    codes[i] = int8_t(std::fabs(steps) <= 127.5f ? std::nearbyint(steps) : 0);
  }
  return most / 127 + poison;
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
      for (int t = 0; t < a.n_tokens; ++t) {
        if (key0 > a.pos + t || (key0 + kBlockTokens <= first_seen(t) && key0 >= a.n_sinks)) continue;
        for (int row = t * a.n_heads; row < (t + 1) * a.n_heads; ++row) {
          scores(row);
          softmax(t, row, key0);
          values(sums_of(row));
        }
      }
    }
  }

 private:
  int first_seen(int t) const { return a.window > 0 ? std::max(0, a.pos + t + 1 - a.window) : 0; }
  float* sums_of(int row) const { return of_rows.sums + size_t(row) * PartialSoftmax::row_floats(dim); }
  const float* query(int row) const {
    return a.q + size_t(row / a.n_heads) * a.stride + size_t(row % a.n_heads * dim);
  }

  void round_queries() {
    for (int row = 0; row < a.n_tokens * a.n_heads; ++row) {
      int8_t codes[kMaxColumns] = {};
      q_scale[row] = to_codes(query(row), dim, codes) * a.scale;
      for (int c = 0; c < 4 * n_tiles; ++c) q[row][c] = uint8_t(codes[c] + kOffset);
      q_mean[row] = 0;
      of_rows.tops[row] = kHidden;
      of_rows.totals[row] = 0;
      std::fill_n(sums_of(row), dim, 0.0f);
    }
  }

  template <typename T>
  void widen(const T* from, int n, float* to) const {
    for (int i = 0; i < n; i += Vec::width) store(to + i, load(from + i));  // planes are whole vectors
  }
  void widen(KvType type, const char* plane, int n, float* to) const {
    if (type == KvType::f16) return widen(at<f16>(plane), n, to);
    if (type == KvType::bf16) return widen(at<bf16>(plane), n, to);
    widen(at<float>(plane), n, to);
  }

  // keys: tiles of the block's codes; key_scale: of each key.
  void load_keys() {
    const int8_t* codes = at<int8_t>(block);
    if (a.format.keys == KvType::int8) {
      std::copy_n(at<float>(block + a.format.key_scales()), kBlockTokens, key_scale);
    } else {
      widen(a.format.keys, block, dim * kBlockTokens, wide);
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
    if constexpr (kOffset != 0) {
      constexpr int32_t ones = 0x01010101;
      each_vector([&](int v) { sums_of_keys[v] = product(ones, v); });
    }
  }
  // wide less the mean, key by key, which are its columns: as to_codes() does rows.
  void round_keys() {
    float most[kBlockTokens] = {}, poison[kBlockTokens] = {}, per_step[kBlockTokens];
    for (int c = 0; c < dim; ++c) {
      float* column = wide + c * kBlockTokens;
      for (int j = 0; j < kBlockTokens; ++j) {
        column[j] = j < n_keys ? column[j] - mean[c] : 0;
        most[j] = std::max(most[j], std::fabs(column[j]));
        poison[j] += column[j] * 0;
      }
    }
    for (int j = 0; j < kBlockTokens; ++j) {
      per_step[j] = most[j] > 0 ? 127 / most[j] : 0;
      key_scale[j] = most[j] / 127 + poison[j];
    }
    for (int i = 0; i < dim * kBlockTokens; ++i) {
      const float steps = wide[i] * per_step[i % kBlockTokens];
      rounded[i] = int8_t(std::fabs(steps) <= 127.5f ? std::nearbyint(steps) : 0);
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

  void scores(int row) {
    Ints sums[kVectors] = {};
    for (int tile = 0; tile < n_tiles; ++tile) {
      int32_t four;
      std::memcpy(&four, q[row] + 4 * tile, 4);
      const int8_t* of_tile = keys + tile * 4 * kBlockTokens;
      for (int v = 0; v < kVectors; ++v) sums[v] = dot(sums[v], four, of_tile + v * Vec::width * 4);
    }
    each_vector([&](int v) {
      Vec s = to_floats(sums[v]);
      if constexpr (kOffset != 0) s = fma(to_floats(sums_of_keys[v]), splat(-float(kOffset)), s);
      store(p + v * Vec::width,
            fma(s * load(key_scale + v * Vec::width), splat(q_scale[row]), splat(q_mean[row])));
    });
  }

  // Scores to weights. What was summed so far shrinks.
  void softmax(int t, int row, int key0) {
    const int last = a.pos + t - key0, begin = first_seen(t) - key0, n_sinks = a.n_sinks - key0;
    if (a.softcap > 0)
      each_vector([&](int v) {
        float* s = p + v * Vec::width;
        store(s, splat(a.softcap) * tanh(load(s) / splat(a.softcap)));
      });
    if (last < kBlockTokens - 1 || begin > 0)
      for (int j = 0; j < kBlockTokens; ++j)
        if (j > last || (j < begin && j >= n_sinks)) p[j] = kHidden;
    Vec tops = splat(kHidden);
    each_vector([&](int v) { tops = max(tops, load(p + v * Vec::width)); });
    float &top = of_rows.tops[row], &total = of_rows.totals[row];
    const float new_top = std::max(top, max_of(tops));
    Vec totals = splat(0);
    each_vector([&](int v) {
      const Vec e = exp(load(p + v * Vec::width) - splat(new_top));
      store(p + v * Vec::width, e);
      totals = totals + e;
    });
    shrink = std::exp(top - new_top);
    top = new_top;
    total = total * shrink + sum(totals);
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
      for (int j = 0; j < n_keys; ++j) value_scale[j] = to_codes(wide + j * dim, dim, rounded + j * dim);
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

  void widen_values() {
    const KvFormat& f = a.format;
    const char* plane = block + f.values_at();
    if (f.values != KvType::int8 && f.values != KvType::int4)
      return widen(f.values, plane, kBlockTokens * dim, wide);
    const float* scales = at<float>(block + f.value_scales());
    const float* minima = at<float>(block + f.value_minima());
    const int row = (dim + 1) / 2;  // bytes of int4
    for (int j = 0; j < n_keys; ++j)
      for (int c = 0; c < dim; ++c)
        wide[j * dim + c] =
            f.values == KvType::int8
                ? float(at<int8_t>(plane)[j * dim + c]) * scales[j]
                : minima[j] + scales[j] * float(at<uint8_t>(plane)[j * row + c / 2] >> c % 2 * 4 & 15);
  }

  void values(float* out) {
    if constexpr (int8_values)
      values_in_int8(out);
    else
      values_in_float(out);
  }

  void values_in_float(float* out) const {
    constexpr int kAtOnce = 4;
    int c = 0;
    for (; c + kAtOnce * Vec::width <= dim; c += kAtOnce * Vec::width) {
      Vec sums[kAtOnce];
      for (int u = 0; u < kAtOnce; ++u) sums[u] = load(out + c + u * Vec::width) * splat(shrink);
      for (int j = 0; j < n_keys; ++j)
        for (int u = 0; u < kAtOnce; ++u)
          sums[u] = fma(splat(p[j]), load(wide + j * dim + c + u * Vec::width), sums[u]);
      for (int u = 0; u < kAtOnce; ++u) store(out + c + u * Vec::width, sums[u]);
    }
    for (; c < dim; ++c) {
      float sum = out[c] * shrink;
      for (int j = 0; j < n_keys; ++j) sum = std::fma(p[j], wide[j * dim + c], sum);
      out[c] = sum;
    }
  }

  void values_in_int8(float* out) {
    each_vector([&](int v) {
      float* w = p + v * Vec::width;
      store(w, load(w) * load(value_scale + v * Vec::width));
    });
    alignas(4) int8_t codes[kBlockTokens];
    const float scale = to_codes(p, kBlockTokens, codes);
    float row[Vec::width];
    for (int c = 0; c < dim; c += Vec::width) {
      Ints sums{};
      for (int j = 0; j < kBlockTokens; j += 4) {
        int32_t four;
        std::memcpy(&four, codes + j, 4);
        sums = dot(sums, four, value_tiles + j * columns() + 4 * c);
      }
      const int n = std::min<int>(Vec::width, dim - c);
      if (n == Vec::width) {
        store(out + c, fma(to_floats(sums), splat(scale), load(out + c) * splat(shrink)));
        continue;
      }
      store(row, to_floats(sums) * splat(scale));
      for (int i = 0; i < n; ++i) out[c + i] = out[c + i] * shrink + row[i];
    }
  }

  AttentionArgs a;
  const char* block;
  int dim, n_tiles, n_keys;
  bool has_mean;
  PartialSoftmax of_rows;
  float shrink, q_scale[kAttentionRows], q_mean[kAttentionRows];  // q_mean: what each row gives the mean
  alignas(64) uint8_t q[kAttentionRows][kMaxColumns + 1];
  alignas(64) float mean[kMaxHeadDim], p[kBlockTokens], key_scale[kBlockTokens], value_scale[kBlockTokens];
  Ints sums_of_keys[kVectors];
  alignas(64) int8_t keys[kBlockTokens * kMaxHeadDim], rounded[kBlockTokens * kMaxHeadDim];
  alignas(64) int8_t value_tiles[kBlockTokens * kMaxHeadDim];
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
