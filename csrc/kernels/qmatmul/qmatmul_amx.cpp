// AMX: sixteen tokens by sixteen rows by 64 columns in one instruction. A packed band is a B tile as it lies;
// activations are A tiles as they lie, a row per token.
//
// Four tiles of sums, 32 tokens x 32 rows, share two tiles of weights and two of activations: four products
// per four loads. After each group its sums go to memory and into float sums by AVX-512 while the tiles are
// at the next group. That is the limit: for groups of 128, 64 vectors of sums to scale per eight products.
// The weights of 32 rows x kDepth columns stay in the L1 cache while every token passes over them.
//
// Codes of 4 bits are unpacked once per panel. A few tokens go to vpdpbusd, which gives the same bits.
#include <algorithm>

#include "core/amx.h"
#include "core/simd.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/qmatmul_avx512.h"

namespace russet {

void qmatmul_vnni(const QmatmulArgs& a);

namespace {

constexpr int kFewTokens = 8;
constexpr int kTokens = 32, kBands = 2, kRows = kBands * kBandRows;
constexpr int kDepth = 512;
constexpr int kMaxGroups = kDepth / 32;

struct alignas(64) Scratch {
  uint8_t codes[kBands][kDepth * kBandRows];  // q - center, unpacked or past the last band
  float scales[kMaxGroups][kRows], zeros[kMaxGroups][kRows];
  int8_t x[kTokens][kDepth];     // the last tokens, filled up with zeros
  int32_t d[2][kTokens][kRows];  // of one group, and of the one before
  float acc[kTokens][kRows];
};
static_assert(sizeof(Scratch) <= kQmatmulScratchBytes);

// Columns [first, first + depth) of one band as int8 q - center: where they lie, or unpacked into `room`.
const uint8_t* codes_of(const Packed& w, int b, int first, int depth, uint8_t* room) {
  if (b >= w.n_bands()) {
    std::memset(room, 0, size_t(depth) * kBandRows);
    return room;
  }
  const uint8_t* codes = w.band(b) + size_t(first) * size_t(2 * w.bits);
  if (w.bits == 8) return codes;
  const __m512i low = _mm512_set1_epi8(15), center = _mm512_set1_epi8(8);
  for (int c = 0; c < depth; c += 8, codes += 64) {
    const __m512i both = _mm512_load_si512(codes);
    const __m512i early = _mm512_and_si512(both, low);
    const __m512i late = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    _mm512_store_si512(room + 16 * c, _mm512_sub_epi8(early, center));
    _mm512_store_si512(room + 16 * c + 64, _mm512_sub_epi8(late, center));
  }
  return room;
}

template <typename T>
void scales_of(const Packed& w, int b, int first, int n_groups, Scratch& s) {
  for (int i = 0; i < kBands; ++i)
    for (int g = 0; g < n_groups; ++g) {
      float *to = &s.scales[g][i * kBandRows], *zero_to = &s.zeros[g][i * kBandRows];
      if (b + i >= w.n_bands()) {
        _mm512_store_ps(to, _mm512_setzero_ps());
        _mm512_store_ps(zero_to, _mm512_setzero_ps());
        continue;
      }
      const int at = (first / w.group_size + g) * kBandRows;
      const __m512 scale = load(static_cast<const T*>(w.band_of(w.scales, b + i)) + at).v;
      _mm512_store_ps(to, scale);
      if (!w.biases) continue;
      const __m512 bias = load(static_cast<const T*>(w.band_of(w.biases, b + i)) + at).v;
      _mm512_store_ps(zero_to, _mm512_fmadd_ps(_mm512_set1_ps(w.center()), scale, bias));
    }
}

// Tiles 0 to 3 are sums (token half, band), 4 and 5 activations, 6 and 7 weights.
void configure(int group_size) {
  const int columns = std::min(group_size, 64);
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = uint8_t(tile < 6 ? 16 : columns / 4);
    config.row_bytes[tile] = uint16_t(tile == 4 || tile == 5 ? columns : 64);
  }
  configure_tiles(config);
}

// d = the sums of one group for 32 tokens and two bands
void products(const int8_t* x, size_t x_stride, const uint8_t* const (&w)[kBands], int begin, int group_size,
              int32_t (&d)[kTokens][kRows]) {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  const int columns = std::min(group_size, 64);
  for (int c = begin; c < begin + group_size; c += columns) {
    load_tile<6>(w[0] + 16 * c, 64);
    load_tile<4>(x + c, x_stride);
    add_product<0, 4, 6>();
    load_tile<7>(w[1] + 16 * c, 64);
    add_product<1, 4, 7>();
    load_tile<5>(x + c + 16 * x_stride, x_stride);
    add_product<2, 5, 6>();
    add_product<3, 5, 7>();
  }
  constexpr size_t kStride = sizeof d[0];
  store_tile<0>(&d[0][0], kStride);
  store_tile<1>(&d[0][16], kStride);
  store_tile<2>(&d[16][0], kStride);
  store_tile<3>(&d[16][16], kStride);
}

// acc = fma(scale * x_scale, d, acc), and the zeros, for n tokens of one group
void add_group(const QmatmulArgs& a, int t, int n, int group, const float* scales, const float* zeros,
               const int32_t (&d)[kTokens][kRows], float (&acc)[kTokens][kRows]) {
  const size_t n_groups = size_t(a.w.n_groups());
  const __m512 scale[kBands] = {_mm512_load_ps(scales), _mm512_load_ps(scales + 16)};
  const __m512 zero[kBands] = {_mm512_load_ps(zeros), _mm512_load_ps(zeros + 16)};
  const bool symmetric = !a.w.biases;
  for (int i = 0; i < n; ++i) {
    const size_t of_x = size_t(t + i) * n_groups + size_t(group);
    const float x_scale = a.x.scales[of_x];
    for (int v = 0; v < kBands; ++v) {
      float* to = &acc[i][16 * v];
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(&d[i][16 * v]));
      __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(scale[v], _mm512_set1_ps(x_scale)), sum, _mm512_load_ps(to));
      if (!symmetric) y = _mm512_fmadd_ps(zero[v], _mm512_set1_ps(x_scale * float(a.x.sums[of_x])), y);
      _mm512_store_ps(to, y);
    }
  }
}

// The panel's part of y for tokens [t, t + n): set by the first columns, added to by the rest.
void block(const QmatmulArgs& a, int t, int n, int b, int first, int depth,
           const uint8_t* const (&codes)[kBands], Scratch& s) {
  const int8_t* x = a.x.codes + size_t(t) * size_t(a.w.n_cols) + size_t(first);
  size_t x_stride = size_t(a.w.n_cols);
  if (n < kTokens) {  // a tile reads sixteen rows, and there are not so many
    std::memset(s.x, 0, sizeof s.x);
    for (int i = 0; i < n; ++i) std::memcpy(s.x[i], x + size_t(i) * x_stride, size_t(depth));
    x = s.x[0];
    x_stride = kDepth;
  }
  const __mmask16 mask[kBands] = {rows_left(a.w, b), rows_left(a.w, b + 1)};
  float* y = a.y + size_t(t) * a.y_stride + size_t(b * kBandRows);
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < kBands; ++v) {
      const float* from = y + size_t(i) * a.y_stride + size_t(16 * v);
      _mm512_store_ps(&s.acc[i][16 * v],
                      first == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask[v], from));
    }
  const int n_groups = depth / a.w.group_size, first_group = first / a.w.group_size;
  for (int g = 0; g <= n_groups; ++g) {  // the tiles are one group ahead of the float sums
    if (g < n_groups) products(x, x_stride, codes, g * a.w.group_size, a.w.group_size, s.d[g % 2]);
    if (g > 0)
      add_group(a, t, n, first_group + g - 1, s.scales[g - 1], s.zeros[g - 1], s.d[(g - 1) % 2], s.acc);
  }
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < kBands; ++v)
      _mm512_mask_storeu_ps(y + size_t(i) * a.y_stride + size_t(16 * v), mask[v],
                            _mm512_load_ps(&s.acc[i][16 * v]));
}

}  // namespace

void qmatmul_amx(const QmatmulArgs& a) {
  if (a.n_tokens <= kFewTokens) return qmatmul_vnni(a);
  Scratch& s = *reinterpret_cast<Scratch*>(a.scratch);
  configure(a.w.group_size);
  for (int b = 0; b < a.w.n_bands(); b += kBands)
    for (int first = 0; first < a.w.n_cols; first += kDepth) {
      const int depth = std::min(kDepth, a.w.n_cols - first);
      const uint8_t* const codes[kBands] = {codes_of(a.w, b, first, depth, s.codes[0]),
                                            codes_of(a.w, b + 1, first, depth, s.codes[1])};
      with_type(a.w.dtype,
                [&]<typename T>(const T*) { scales_of<T>(a.w, b, first, depth / a.w.group_size, s); });
      for (int t = 0; t < a.n_tokens; t += kTokens)
        block(a, t, std::min(kTokens, a.n_tokens - t), b, first, depth, codes, s);
    }
  release_tiles();
}

}  // namespace russet
