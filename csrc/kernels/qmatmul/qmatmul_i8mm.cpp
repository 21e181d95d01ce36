// smmla: 2 rows x 8 columns by 8 columns x 2 tokens, 32 products an instruction, twice those of sdot. Two
// neighbouring tiles, zipped, give registers of 2 rows x 8 columns; those of two tokens are halves of theirs.
//
// Many tokens: a panel of kDepth columns of a band is unpacked and zipped once into the L1 cache, the same
// for 8 and 4 bits, and kTileTokens tokens at a time go over it: 16 sums of 2 rows x 2 tokens, 4 registers of
// activations, and each register of weights used for both pairs of tokens as it comes. An odd token is paired
// with itself. Bound by the products: 32 of them in 53 instructions (clang), 20 of which load.
//
// A few tokens are bound by memory, where sdot does as well without any zipping.
#include "kernels/qmatmul/qmatmul_neon.h"

namespace russet {

void qmatmul_dotprod(const QmatmulArgs& a);

namespace {

// ---- the panel: per 8 columns, 8 registers of 2 rows ----

inline void zip(int8x16_t early, int8x16_t late, int8_t* to) {
  const int32x4_t a = vreinterpretq_s32_s8(early), b = vreinterpretq_s32_s8(late);
  vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
  vst1q_s8(to + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
}

inline void unpack(const Packed& w, int b, int first, int depth, int8_t* panel) {
  const uint8_t* codes = w.band(b) + size_t(first) * size_t(2 * w.bits);
  for (int c = 0; c < depth; c += 8, codes += 16 * w.bits)
    for (int v = 0; v < 4; ++v, panel += 32) {
      const uint8x16_t q = vld1q_u8(codes + 16 * v);
      if (w.bits == 8) {
        zip(vreinterpretq_s8_u8(q), vreinterpretq_s8_u8(vld1q_u8(codes + 64 + 16 * v)), panel);
      } else {
        const int8x16_t early = vreinterpretq_s8_u8(vandq_u8(q, vdupq_n_u8(15)));
        const int8x16_t late = vreinterpretq_s8_u8(vshrq_n_u8(q, 4));
        zip(vsubq_s8(early, vdupq_n_s8(8)), vsubq_s8(late, vdupq_n_s8(8)), panel);
      }
    }
}

// ---- the product ----

// Of a pair's tokens i, i + 1 and rows r, r + 1, as (r, i), (r, i + 1), (r + 1, i), (r + 1, i + 1).
template <int n_pairs>
struct Sums {
  int32x4_t of[n_pairs][8];
};

template <int n_pairs>
inline void add_8_columns(Sums<n_pairs>& d, const int8_t* panel, const int8x16_t (&x)[n_pairs]) {
  for (int r = 0; r < 8; ++r) {
    const int8x16_t rows = vld1q_s8(panel + 16 * r);
    for (int p = 0; p < n_pairs; ++p) d.of[p][r] = vmmlaq_s32(d.of[p][r], rows, x[p]);
  }
}

// One band, columns [first, first + depth) and tokens [t, t + n_tokens): y is set by the first columns and
// added to by the rest.
template <int n_tokens, typename T>
inline void tile(const QmatmulArgs& a, const int8_t* panel, int b, int t, int first, int depth) {
  constexpr int n_pairs = (n_tokens + 1) / 2;
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
    Sums<n_pairs> d = {};
    for (int c = 0; c < w.group_size; c += 16, x += 16, panel += 256) {
      int8x16_t early[n_pairs], late[n_pairs];
      for (int p = 0; p < n_pairs; ++p) {
        const int8_t* of_pair = x + size_t(2 * p) * n_cols;
        const int64x2_t even = vreinterpretq_s64_s8(vld1q_s8(of_pair));
        const int64x2_t odd = 2 * p + 1 < n_tokens ? vreinterpretq_s64_s8(vld1q_s8(of_pair + n_cols)) : even;
        early[p] = vreinterpretq_s8_s64(vzip1q_s64(even, odd));
        late[p] = vreinterpretq_s8_s64(vzip2q_s64(even, odd));
      }
      add_8_columns(d, panel, early);
      add_8_columns(d, panel + 128, late);
    }
    int32x4_t of_token[2 * n_pairs][4];
    for (int p = 0; p < n_pairs; ++p)
      for (int v = 0; v < 4; ++v) {
        of_token[2 * p][v] = vuzp1q_s32(d.of[p][2 * v], d.of[p][2 * v + 1]);
        of_token[2 * p + 1][v] = vuzp2q_s32(d.of[p][2 * v], d.of[p][2 * v + 1]);
      }
    const Scales of = scales_at(scales, biases, g, w.center());
    for (int i = 0; i < n_tokens; ++i) add_codes(acc[i], of_token[i], of, x_scales[size_t(i) * n_groups]);
    if (!biases) continue;
    for (int i = 0; i < n_tokens; ++i) {
      const size_t of_x = size_t(i) * n_groups;
      add_zeros(acc[i], of, x_scales[of_x] * float(x_sums[of_x]));
    }
  }
  for (int i = 0; i < n_tokens; ++i) store_rows(y + size_t(i) * a.y_stride, acc[i], rows_in(w, b));
}

template <typename T>
inline void tile_of(int n_tokens, const QmatmulArgs& a, const int8_t* panel, int b, int t, int first,
                    int depth) {
  switch (n_tokens) {
    case 1:
      return tile<1, T>(a, panel, b, t, first, depth);
    case 2:
      return tile<2, T>(a, panel, b, t, first, depth);
    case 3:
      return tile<3, T>(a, panel, b, t, first, depth);
    default:
      return tile<kTileTokens, T>(a, panel, b, t, first, depth);
  }
}

template <typename T>
inline void many(const QmatmulArgs& a) {
  static_assert(kBandRows * kDepth <= kQmatmulScratchBytes);
  int8_t* panel = reinterpret_cast<int8_t*>(a.scratch);
  for (int b = 0; b < a.w.n_bands(); ++b)
    for (int first = 0; first < a.w.n_cols; first += kDepth) {
      const int depth = std::min(kDepth, a.w.n_cols - first);
      unpack(a.w, b, first, depth, panel);
      for (int t = 0; t < a.n_tokens; t += kTileTokens)
        tile_of<T>(std::min(kTileTokens, a.n_tokens - t), a, panel, b, t, first, depth);
    }
}

}  // namespace

void qmatmul_i8mm(const QmatmulArgs& a) {
  if (a.n_tokens <= kTileTokens) return qmatmul_dotprod(a);
  with_type(a.w.dtype, [&]<typename T>(const T*) { many<T>(a); });
}

}  // namespace russet
