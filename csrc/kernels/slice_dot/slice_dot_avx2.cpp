// Half a tile, eight rows, at a time. Products of four bits by a byte are small: a pair of them is at most
// 2 * 15 * 128, so that the pairs of a tile's four columns are added in 16 bits, and tiles in 32.
#include <immintrin.h>

#include <cstddef>

#include "kernels/slice_dot/slice_dot.h"

namespace russet {
namespace {

inline __m256i four_of(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
inline __m256i half_at(const uint8_t* tile) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(tile));
}

template <bool high>
inline void slice_dot_of(const SliceDotArgs& a, int half) {
  const __m256i mask = _mm256_set1_epi8(high ? 15 : 3), ones = _mm256_set1_epi16(1);
  const uint8_t* from = a.slice + 32 * half;
  const int8_t* x = a.x;
  for (int g = 0; g < a.n_cols / a.group_size; ++g) {
    __m256i sum = _mm256_setzero_si256();
    for (int c = 0; c < a.group_size; c += 16, x += 16) {
      __m256i bits[4];
      if constexpr (high) {
        const __m256i early = half_at(from), late = half_at(from + 64);
        bits[0] = early, bits[1] = _mm256_srli_epi16(early, 4);
        bits[2] = late, bits[3] = _mm256_srli_epi16(late, 4);
        from += 128;
      } else {
        bits[0] = half_at(from);
        bits[1] = _mm256_srli_epi16(bits[0], 2);
        bits[2] = _mm256_srli_epi16(bits[0], 4);
        bits[3] = _mm256_srli_epi16(bits[0], 6);
        from += 64;
      }
      __m256i pairs = _mm256_setzero_si256();  // at most 4 * 3,840: fits 16 bits
      for (int i = 0; i < 4; ++i)
        pairs = _mm256_add_epi16(pairs,
                                 _mm256_maddubs_epi16(_mm256_and_si256(bits[i], mask), four_of(x + 4 * i)));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    auto* const sums = reinterpret_cast<__m256i*>(a.sums + 16 * g + 8 * half);
    *sums = _mm256_add_epi32(*sums, _mm256_slli_epi32(sum, a.shift()));
  }
}

}  // namespace

void slice_dot_avx2(const SliceDotArgs& a) {
  for (int half = 0; half < 2; ++half)
    a.index == 0 ? slice_dot_of<true>(a, half) : slice_dot_of<false>(a, half);
}

}  // namespace russet
