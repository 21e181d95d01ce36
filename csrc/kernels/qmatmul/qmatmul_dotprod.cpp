// sdot by lane: four sums, each of four products, in one instruction. A tile is four registers of 4 rows by 4
// columns, and the four activations they meet are a lane of a register that holds 16 columns of a token: no
// broadcast. Codes of 4 bits go in as q, one AND or shift away; their center is taken out exactly, as
// 8 * (sum of x), before the first product.
//
// Up to kTileTokens tokens share one pass over the codes, each register of which is used once per token.
// Their 16 sums, 4 registers of activations and 4 of weights leave 8 of the 32 free, and 16 chains hide the
// latency of sdot (3 cycles, 4 begun in each, on Apple's large cores); a single token gets two chains per
// sum. Bound by memory, which is read as one long stream: 29 instructions per 256 bytes of codes of 8 bits,
// 41 per 128 bytes of 4 bits for one token (clang).
//
// Many tokens: kDepth columns of a band stay in the L1 cache for all of them, in place where codes have 8
// bits, as they are what sdot reads, and unpacked once into a panel where they have 4. Bound by the dot
// products: 64 of them in 81 instructions.
#include "kernels/qmatmul/qmatmul_neon.h"

namespace russet {
namespace {

struct Tile {
  int8x16_t quad[4];
};
template <int n_tokens>
struct Activations {
  int8x16_t of[n_tokens];  // 16 columns
};
template <int n_tokens>
struct Sums {
  static constexpr int n_chains = n_tokens == 1 ? 2 : 1;
  int32x4_t of[n_chains][n_tokens][4];
};

inline Tile load_tile(const uint8_t* codes) {
  const int8_t* p = reinterpret_cast<const int8_t*>(codes);
  return {vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)};
}

// The two tiles of a block of nibbles, as q.
struct Tiles {
  Tile early, late;
};
inline Tiles load_nibbles(const uint8_t* codes) {
  Tiles q;
  for (int v = 0; v < 4; ++v) {
    const uint8x16_t both = vld1q_u8(codes + 16 * v);
    q.early.quad[v] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    q.late.quad[v] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
  return q;
}

// The tile's columns are 4 * lane to 4 * lane + 3 of x.
template <int lane, int n_tokens>
inline void add_tile(Sums<n_tokens>& d, const Tile& w, const Activations<n_tokens>& x) {
  auto& chain = d.of[lane % Sums<n_tokens>::n_chains];
  for (int v = 0; v < 4; ++v)
    for (int i = 0; i < n_tokens; ++i) chain[i][v] = vdotq_laneq_s32(chain[i][v], w.quad[v], x.of[i], lane);
}

template <int bits, int n_tokens>
inline void add_16_columns(Sums<n_tokens>& d, const uint8_t* codes, const Activations<n_tokens>& x) {
  if constexpr (bits == 8) {
    add_tile<0>(d, load_tile(codes), x);
    add_tile<1>(d, load_tile(codes + 64), x);
    add_tile<2>(d, load_tile(codes + 128), x);
    add_tile<3>(d, load_tile(codes + 192), x);
  } else {
    const Tiles first = load_nibbles(codes);
    add_tile<0>(d, first.early, x);
    add_tile<1>(d, first.late, x);
    const Tiles second = load_nibbles(codes + 64);
    add_tile<2>(d, second.early, x);
    add_tile<3>(d, second.late, x);
  }
}

// One band, columns [first, first + depth) and tokens [t, t + n_tokens): y is set by the first columns and
// added to by the rest. `codes` are of `bits`, where a.w may have fewer.
template <int bits, int n_tokens, typename T>
inline void tile(const QmatmulArgs& a, const uint8_t* codes, int b, int t, int first, int depth) {
  const Packed& w = a.w;
  const size_t n_cols = size_t(w.n_cols), n_groups = size_t(w.n_groups());
  const T* scales = static_cast<const T*>(w.band_of(w.scales, b));
  const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) : nullptr;
  const int8_t* x = a.x.codes + size_t(t) * n_cols + size_t(first);
  float* y = a.y + size_t(t) * a.y_stride + size_t(b * kBandRows);
  BandSums acc[n_tokens] = {};
  if (first > 0)
    for (int i = 0; i < n_tokens; ++i) acc[i] = load_rows(y + size_t(i) * a.y_stride, rows_in(w, b));
  const size_t begin = size_t(first / w.group_size), end = begin + size_t(depth / w.group_size);
  for (size_t g = begin; g < end; ++g) {
    const float* x_scales = a.x.scales + size_t(t) * n_groups + g;
    const int32_t* x_sums = a.x.sums + size_t(t) * n_groups + g;
    Sums<n_tokens> d = {};
    if constexpr (bits == 4)
      for (int i = 0; i < n_tokens; ++i)
        for (int v = 0; v < 4; ++v) d.of[0][i][v] = vdupq_n_s32(-8 * x_sums[size_t(i) * n_groups]);
    for (int c = 0; c < w.group_size; c += 16, x += 16, codes += 32 * bits) {
      Activations<n_tokens> sixteen;
      for (int i = 0; i < n_tokens; ++i) sixteen.of[i] = vld1q_s8(x + size_t(i) * n_cols);
      add_16_columns<bits>(d, codes, sixteen);
    }
    const Scales of = scales_at(scales, biases, g, w.center());
    for (int i = 0; i < n_tokens; ++i) {
      if constexpr (n_tokens == 1)
        for (int v = 0; v < 4; ++v) d.of[0][i][v] = vaddq_s32(d.of[0][i][v], d.of[1][i][v]);
      add_codes(acc[i], d.of[0][i], of, x_scales[size_t(i) * n_groups]);
    }
    if (!biases) continue;
    for (int i = 0; i < n_tokens; ++i) {
      const size_t of_x = size_t(i) * n_groups;
      add_zeros(acc[i], of, x_scales[of_x] * float(x_sums[of_x]));
    }
  }
  for (int i = 0; i < n_tokens; ++i) store_rows(y + size_t(i) * a.y_stride, acc[i], rows_in(w, b));
}

template <int bits, typename T>
inline void tile_of(int n_tokens, const QmatmulArgs& a, const uint8_t* codes, int b, int t, int first,
                    int depth) {
  switch (n_tokens) {
    case 1:
      return tile<bits, 1, T>(a, codes, b, t, first, depth);
    case 2:
      return tile<bits, 2, T>(a, codes, b, t, first, depth);
    case 3:
      return tile<bits, 3, T>(a, codes, b, t, first, depth);
    default:
      return tile<bits, kTileTokens, T>(a, codes, b, t, first, depth);
  }
}

// Nibbles of a band to tiles of q - 8.
inline void unpack(const uint8_t* codes, int depth, uint8_t* panel) {
  for (int c = 0; c < depth; c += 8, codes += 64) {
    const Tiles q = load_nibbles(codes);
    for (const Tile& tile : {q.early, q.late})
      for (int v = 0; v < 4; ++v, panel += 16)
        vst1q_s8(reinterpret_cast<int8_t*>(panel), vsubq_s8(tile.quad[v], vdupq_n_s8(8)));
  }
}

template <typename T>
inline void few(const QmatmulArgs& a) {
  for (int b = 0; b < a.w.n_bands(); ++b) {
    if (a.w.bits == 8)
      tile_of<8, T>(a.n_tokens, a, a.w.band(b), b, 0, 0, a.w.n_cols);
    else
      tile_of<4, T>(a.n_tokens, a, a.w.band(b), b, 0, 0, a.w.n_cols);
  }
}

template <typename T>
inline void many(const QmatmulArgs& a) {
  static_assert(kBandRows * kDepth <= kQmatmulScratchBytes);
  for (int b = 0; b < a.w.n_bands(); ++b)
    for (int first = 0; first < a.w.n_cols; first += kDepth) {
      const int depth = std::min(kDepth, a.w.n_cols - first);
      const uint8_t* codes = a.w.band(b) + size_t(first) * size_t(2 * a.w.bits);
      if (a.w.bits == 4) {
        unpack(codes, depth, a.scratch);
        codes = a.scratch;
      }
      for (int t = 0; t < a.n_tokens; t += kTileTokens)
        tile_of<8, T>(std::min(kTileTokens, a.n_tokens - t), a, codes, b, t, first, depth);
    }
}

}  // namespace

void qmatmul_dotprod(const QmatmulArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) { a.n_tokens <= kTileTokens ? few<T>(a) : many<T>(a); });
}

}  // namespace russet
