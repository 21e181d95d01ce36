// Both products on AMX's tiles of bf16: 16 rows of q or p by 16 keys or columns, 32 numbers deep, in one
// instruction, summed in f32.
//
// Nothing is rounded to bf16. A float is the sum of three bf16 numbers, each at most 2^-8 of the one before;
// an f16 is that of two, and int8 and int4 codes are one. Part i of q or p is multiplied with part j of keys
// or values where i + j < 3: what is left out is together below 2^-24 of the product, one rounding of a
// float. That is 3 tiles for bf16, int8 and int4, 5 for f16 and 6 for f32. Tiles take a number below 2^-126
// for zero.
//
// A block becomes pairs of rows, interleaved over the columns, once for all rows of a call. Rows of a tile do
// not know of each other, and what is added to one row is the same in any company: so are its bits. One token
// goes through the same tiles with fewer rows. Bound by the tile products for many rows, by memory or by the
// interleaving for few.
#include "core/amx.h"
#include "kernels/attention/online_softmax.h"
#include "kernels/attention/widen_plane.h"

namespace russet {
namespace {

constexpr int kTileRows = 16, kDepth = 32;         // of q or p: rows, and numbers of each
constexpr int kWidth = 16;                         // keys or columns of a tile
constexpr int kTileWords = 256;                    // pairs of bf16
constexpr int kParts = 3;                          // of a float
constexpr int kRows = kAttentionRows + kTileRows;  // that a tile may reach into

int whole(int n, int step) {
  return (n + step - 1) / step * step;
}

__m512i bits(Vec x) {
  return _mm512_castps_si512(x.v);
}
// To the 8 bits of a bf16, halves away from zero, and from 3.39e38 on to infinity. A NaN may become some
// number; x less that is NaN still.
Vec rounded(Vec x) {
  const __m512i sum = _mm512_add_epi32(bits(x), _mm512_set1_epi32(0x8000));
  return {_mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(int(0xffff0000))))};
}

// Rows of floats: [kParts][kRows][depth]
struct Parts {
  uint16_t* data;
  int depth;

  uint16_t* at(int part, int r) const { return data + (size_t(part) * kRows + size_t(r)) * size_t(depth); }
  size_t row_bytes() const { return size_t(depth) * sizeof *data; }

  // 16 columns from `column` on
  void set(int r, int column, Vec x) const {
    for (int part = 0; part < kParts; ++part) {
      const Vec upper = part + 1 < kParts ? rounded(x) : x;
      const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits(upper), 16));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(part, r) + column), halves);
      x = x - upper;
    }
  }
};

// A plane of a block: [step][tile][part] tiles of 16 pairs of rows by kWidth columns
struct Pairs {
  uint32_t* data;
  int n_parts, n_rows, n_columns;

  int n_tiles() const { return whole(n_columns, kWidth) / kWidth; }
  uint32_t* tile(int step, int t, int part) const {
    return data + size_t((step * n_tiles() + t) * n_parts + part) * kTileWords;
  }

  // Rows that are not in `rows` become zeros. Whether all others are finite: asked of values alone.
  template <bool asks>
  bool pack(KvType type, const void* from, const Seen& rows) {
    const auto row_of = [&]<typename T>(const T* x) {
      return [=, this](int r) { return x + r * n_columns; };
    };
    switch (type) {
      case KvType::f32:
        return pack_rows<asks, 3>(row_of(static_cast<const float*>(from)), rows);
      case KvType::f16:
        return pack_rows<asks, 2>(row_of(static_cast<const f16*>(from)), rows);
      case KvType::bf16:
        return pack_rows<asks, 1>(row_of(static_cast<const bf16*>(from)), rows);
      case KvType::int8:
        return pack_rows<false, 1>(row_of(static_cast<const int8_t*>(from)), rows);
      case KvType::int4: {
        int8_t codes[2][kMaxHeadDim + 1];
        const auto row = [&](int r) {
          unpack_row(static_cast<const uint8_t*>(from) + r * ((n_columns + 1) / 2), n_columns, codes[r % 2]);
          return codes[r % 2];
        };
        return pack_rows<false, 1>(row, rows);
      }
    }
    return true;
  }

 private:
  template <bool asks, int parts, typename RowOf>
  bool pack_rows(RowOf row_of, const Seen& rows) {
    n_parts = parts;
    Vec poison = splat(0);
    for (int r = 0; r < whole(n_rows, kDepth); r += 2) {
      const auto *even = rows.has(r) ? row_of(r) : nullptr, *odd = rows.has(r + 1) ? row_of(r + 1) : nullptr;
      uint32_t* to = tile(r / kDepth, 0, 0) + r % kDepth / 2 * kWidth;
      const auto pack_columns = [&](auto load_row) {
        const Vec left =
            store_pair<parts>(even ? load_row(even) : splat(0), odd ? load_row(odd) : splat(0), to);
        if constexpr (asks) poison = poison + left;
        to += parts * kTileWords;
      };
      int c = 0;
      for (; c + kWidth <= n_columns; c += kWidth) pack_columns([&](const auto* x) { return load(x + c); });
      if (c < n_columns) pack_columns([&](const auto* x) { return load_part(x + c, n_columns - c); });
    }
    return sum(poison) == 0;
  }

  // Returns what the parts leave: zeros, and NaN for what is not finite.
  template <int parts>
  static Vec store_pair(Vec even, Vec odd, uint32_t* to) {
    for (int part = 0; part < parts; ++part, to += kTileWords) {
      const bool is_last = part + 1 == parts;
      const Vec e = is_last ? even : rounded(even), o = is_last ? odd : rounded(odd);
      const __m512i upper = _mm512_and_si512(bits(o), _mm512_set1_epi32(int(0xffff0000)));
      _mm512_store_si512(to, _mm512_or_si512(upper, _mm512_srli_epi32(bits(e), 16)));
      even = even - e;
      odd = odd - o;
    }
    return even + odd;
  }
};

// c[i][j] = sum_k a[first + i][k] b[k][kWidth * t + j], for the rows of a tile and n_tiles tiles of b, four
// at most. The sums are tiles 0 to 3, the parts of a 4 to 6, those of b follow each other in tile 7.
template <int n_tiles>
void multiply(const Parts& a, int first, const Pairs& b, int t, float* c, size_t c_stride) {
  each_tile<n_tiles>([]<int i>() { zero_tile<i>(); });
  for (int step = 0; step < a.depth / kDepth; ++step) {
    each_tile<kParts>(
        [&]<int part>() { load_tile<4 + part>(a.at(part, first) + step * kDepth, a.row_bytes()); });
    const uint32_t* tile = b.tile(step, t, 0);
    each_tile<n_tiles>([&]<int i>() {
      for (int part = 0; part < b.n_parts; ++part, tile += kTileWords) {
        load_tile<7>(tile, kWidth * sizeof *tile);
        add_product_bf16<i, 4, 7>();
        if (part < 2) add_product_bf16<i, 5, 7>();
        if (part < 1) add_product_bf16<i, 6, 7>();
      }
    });
  }
  each_tile<n_tiles>([&]<int i>() { store_tile<i>(c + i * kWidth, c_stride * sizeof(float)); });
}

// One run of keys, for all rows of a call.
struct Run : OnlineSoftmax {
  static constexpr int kAcross = 4;  // tiles of a product at once

  const Parts q, p;  // q is scaled
  uint32_t* const tiles;
  float* const scores;     // [kRows][kBlockTokens], then weights
  float* const product;    // [kTileRows][kAcross * kWidth]
  const int rows_of_tile;  // as many in each: 24 are 12 and 12

  Run(const AttentionArgs& args, const PartialSoftmax& partial)
      : OnlineSoftmax(args, partial),
        q{part_of_scratch<uint16_t>(0), whole(dim, kDepth)},
        p{part_of_scratch<uint16_t>(q_floats(q.depth)), kBlockTokens},
        tiles(part_of_scratch<uint32_t>(q_floats(q.depth) + kPFloats)),
        scores(part_of_scratch<float>(q_floats(q.depth) + kPFloats + tile_floats(q.depth))),
        product(scores + kRows * kBlockTokens),
        rows_of_tile((n_rows + n_bands() - 1) / n_bands()) {}

  static constexpr size_t scratch_floats(int depth) {
    return q_floats(depth) + kPFloats + tile_floats(depth) + size_t(kRows * kBlockTokens) +
           size_t(kTileRows * kAcross * kWidth);
  }

  void operator()(int run) {
    configure();
    for (int r = 0; r < n_rows; ++r) {
      const float* from = a.q + size_t(r / a.n_heads) * a.stride + size_t(r % a.n_heads) * size_t(dim);
      for (int c = 0; c < q.depth; c += Vec::width) {
        const int left = std::clamp(dim - c, 0, Vec::width);
        q.set(r, c, (left == Vec::width ? load(from + c) : load_part(from + c, left)) * splat(a.scale));
      }
    }
    each_block(run, [&](const char* data) { block(data); });
    release_tiles();
  }

 private:
  static constexpr size_t kPFloats = size_t(kParts) * kRows * kBlockTokens / 2;
  static constexpr size_t q_floats(int depth) { return size_t(kParts * kRows * depth) / 2; }
  static constexpr size_t tile_floats(int depth) { return size_t(kParts * kBlockTokens * depth) / 2; }
  int n_bands() const { return (n_rows + kTileRows - 1) / kTileRows; }

  template <typename T>
  T* part_of_scratch(size_t at) const {
    return static_cast<T*>(static_cast<void*>(a.scratch + at));
  }

  void configure() const {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile)
      config.rows[tile] = uint8_t(tile < 7 ? rows_of_tile : kTileRows), config.row_bytes[tile] = 64;
    configure_tiles(config);
  }

  void block(const char* data) {
    Pairs keys{tiles, 0, dim, kBlockTokens};
    keys.pack<false>(a.format.keys, data, {0, 0, dim});
    for (int r = 0; r < n_rows; r += rows_of_tile) weigh(r, std::min(rows_of_tile, n_rows - r), keys);

    Pairs values{tiles, 0, kBlockTokens, dim};
    const auto pack = [&](int first, int end) {
      return values.pack<true>(a.format.values, data + a.format.values_at(), seen_by_any(first, end));
    };
    // A value that a row does not see may be NaN, and zero times NaN is NaN: then each token has a pack of
    // its own, in which what it does not see is zero. Else a weight of zero adds nothing to any bit.
    if (pack(0, a.n_tokens) || a.n_tokens == 1) return add_values(0, n_rows, values);
    for (int t = 0; t < a.n_tokens; ++t) {
      if (!seen[t].any()) continue;
      pack(t, t + 1);
      add_values(t * a.n_heads, a.n_heads, values);
    }
  }

  // The weights of n rows from `first` on, those of one tile.
  void weigh(int first, int n, const Pairs& keys) {
    if (!seen_by_some(first, n)) return;
    multiply<kBlockTokens / kWidth>(q, first, keys, 0, scores + first * kBlockTokens, kBlockTokens);
    for (int r = first; r < first + n; ++r) {
      float* weights = scores + r * kBlockTokens;
      if (seen_by(r).any())
        softmax(r, weights);
      else
        std::fill_n(weights, int(kBlockTokens), 0.0f);
      for (int j = 0; j < kBlockTokens; j += Vec::width) p.set(r, j, load(weights + j));
    }
  }

  void add_values(int first, int n, const Pairs& values) const {
    for (int end = first + n; first < end; first += rows_of_tile) {
      const int rows = std::min(rows_of_tile, end - first);
      if (!seen_by_some(first, rows)) continue;
      for (int t = 0; t < values.n_tiles(); t += kAcross) {
        const int across = std::min(kAcross, values.n_tiles() - t);
        each_tile<kAcross>([&]<int i>() {
          if (across == i + 1) multiply<i + 1>(p, first, values, t, product, kAcross * kWidth);
        });
        for (int r = 0; r < rows; ++r)
          if (seen_by(first + r).any()) add(first + r, t * kWidth, across * kWidth, r);
      }
    }
  }

  void add(int r, int column, int n, int product_row) const {
    float* y = sums(r) + column;
    const float* x = product + product_row * kAcross * kWidth;
    for (int c = 0; c < n; c += Vec::width) store(y + c, load(y + c) + load(x + c));
  }

  // A block is longer than the rows of a tile: what one of them sees, the first or the last sees.
  bool seen_by_some(int first, int n) const { return seen_by(first).any() || seen_by(first + n - 1).any(); }

  // What the tokens [first, end) see, and what lies between.
  Seen seen_by_any(int first, int end) const {
    Seen any{0, kBlockTokens, 0};
    for (int t = first; t < end; ++t) {
      if (!seen[t].any()) continue;
      any = {std::max(any.sinks, seen[t].sinks), std::min(any.begin, seen[t].begin),
             std::max(any.end, seen[t].end)};
    }
    return any;
  }
};
static_assert(kMaxHeadDim % kDepth == 0 && Run::scratch_floats(kMaxHeadDim) <= kAttentionKernelFloats);

}  // namespace

void attention_amx(const AttentionArgs& a, int run, const PartialSoftmax& partial) {
  Run(a, partial)(run);
}

}  // namespace russet
