// int8 by int8 without a dot-product instruction: vpmaddubsw multiplies unsigned by signed bytes and adds
// pairs into int16, and would saturate at 255 * 127 * 2. With the sign moved from the code to the activation
// it gets |code| <= 128 and |x| <= 127 instead: at most 32,512, exact. Codes of 4 bits are unsigned as they
// are.
//
// A band is two vectors of 8 rows x 4 columns. Bound by memory for one token (five operations per 32 bytes
// of codes), by the multipliers for many.
#include <immintrin.h>

#include "core/simd.h"
#include "kernels/qmatmul/qmatmul.h"

namespace russet {
namespace {

__m256i four_of(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// acc[v] += the tile's rows 8 v to 8 v + 7 times four activations
inline void add_tile_8(__m256i (&acc)[2], const uint8_t* tile, const int8_t* x, const __m256i ones) {
  const __m256i xs = four_of(x);
  for (int v = 0; v < 2; ++v) {
    const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile) + v);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xs, w));
    acc[v] = _mm256_add_epi32(acc[v], _mm256_madd_epi16(pairs, ones));
  }
}

// The two tiles of a block of nibbles: 15 * 127 * 2 * 2 stays far below 2^15, so they add up as int16 first.
inline void add_tiles_4(__m256i (&acc)[2], const uint8_t* block, const int8_t* x, const __m256i ones) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i early = four_of(x), late = four_of(x + 4);
  for (int v = 0; v < 2; ++v) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(block) + v);
    const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(both, low), early);
    const __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(both, 4), low), late);
    acc[v] = _mm256_add_epi32(acc[v], _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
  }
}

// One band for n_tokens tokens: y[t][0..16)
template <int bits, int n_tokens, typename T>
inline void band(const Packed& w, int b, const int8_t* x, const float* x_scales, const int32_t* x_sums,
                 float* y, size_t y_stride) {
  const uint8_t* codes = w.band(b);
  const T* scales = static_cast<const T*>(w.band_of(w.scales, b));
  const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) : nullptr;
  const size_t n_cols = size_t(w.n_cols), n_groups = size_t(w.n_groups());
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 acc[n_tokens][2];
  for (auto& sums : acc) sums[0] = sums[1] = _mm256_setzero_ps();
  for (size_t g = 0; g < n_groups; ++g) {
    __m256i d[n_tokens][2];
    for (int t = 0; t < n_tokens; ++t)  // nibbles are q, not q - 8
      d[t][0] = d[t][1] = _mm256_set1_epi32(bits == 8 ? 0 : -8 * x_sums[size_t(t) * n_groups + g]);
    const int8_t* xg = x + g * size_t(w.group_size);
    for (int c = 0; c < w.group_size; c += bits == 8 ? 4 : 8, codes += 64)
      for (int t = 0; t < n_tokens; ++t) {
        if constexpr (bits == 8)
          add_tile_8(d[t], codes, xg + size_t(t) * n_cols + c, ones);
        else
          add_tiles_4(d[t], codes, xg + size_t(t) * n_cols + c, ones);
      }
    for (int v = 0; v < 2; ++v) {
      const __m256 scale = load(scales + 16 * g + 8 * size_t(v)).v;
      for (int t = 0; t < n_tokens; ++t) {
        const __m256 s = _mm256_mul_ps(scale, _mm256_set1_ps(x_scales[size_t(t) * n_groups + g]));
        acc[t][v] = _mm256_fmadd_ps(s, _mm256_cvtepi32_ps(d[t][v]), acc[t][v]);
      }
      if (!biases) continue;
      const __m256 center = _mm256_set1_ps(bits == 8 ? 128 : 8);
      const __m256 zero = _mm256_fmadd_ps(center, scale, load(biases + 16 * g + 8 * size_t(v)).v);
      for (int t = 0; t < n_tokens; ++t) {
        const size_t i = size_t(t) * n_groups + g;
        acc[t][v] = _mm256_fmadd_ps(zero, _mm256_set1_ps(x_scales[i] * float(x_sums[i])), acc[t][v]);
      }
    }
  }
  for (int t = 0; t < n_tokens; ++t)
    for (int v = 0; v < 2; ++v) {
      float* to = y + size_t(t) * y_stride + size_t(8 * v);
      const int n = w.n_rows - b * kBandRows - 8 * v;  // rows left
      if (n >= 8) {
        _mm256_storeu_ps(to, acc[t][v]);
      } else if (n > 0) {
        alignas(32) float lanes[8];
        _mm256_store_ps(lanes, acc[t][v]);
        __builtin_memcpy(to, lanes, size_t(n) * sizeof(float));
      }
    }
}

template <int bits, int n_tokens, typename T>
inline void bands(const QmatmulArgs& a, int t) {
  const size_t n_groups = size_t(a.w.n_groups()), at = size_t(t) * n_groups;
  for (int b = 0; b < a.w.n_bands(); ++b)
    band<bits, n_tokens, T>(a.w, b, a.x.codes + size_t(t) * size_t(a.w.n_cols), a.x.scales + at,
                            a.x.sums + at, a.y + size_t(t) * a.y_stride + size_t(b * kBandRows), a.y_stride);
}

template <int bits, typename T>
inline void all(const QmatmulArgs& a) {
  int t = 0;
  for (; t + 2 <= a.n_tokens; t += 2) bands<bits, 2, T>(a, t);
  if (t < a.n_tokens) bands<bits, 1, T>(a, t);
}

}  // namespace

void qmatmul_avx2(const QmatmulArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) { a.w.bits == 8 ? all<8, T>(a) : all<4, T>(a); });
}

}  // namespace russet
