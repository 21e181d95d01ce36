// Sixteen columns at a time: four tiles, with sums of their own, so that no product waits for the one before.
#include <immintrin.h>

#include <cstddef>

#include "kernels/slice_dot/slice_dot.h"

namespace russet {
namespace {

inline __m512i four_of(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

template <bool high>
inline void slice_dot_of(const SliceDotArgs& a) {
  const __m512i mask = _mm512_set1_epi8(high ? 15 : 3);
  const uint8_t* from = a.slice;
  const int8_t* x = a.x;
  for (int g = 0; g < a.n_cols / a.group_size; ++g) {
    __m512i d[4] = {};
    for (int c = 0; c < a.group_size; c += 16, x += 16) {
      __m512i bits[4];
      if constexpr (high) {
        const __m512i early = _mm512_load_si512(from), late = _mm512_load_si512(from + 64);
        bits[0] = early, bits[1] = _mm512_srli_epi16(early, 4);
        bits[2] = late, bits[3] = _mm512_srli_epi16(late, 4);
        from += 128;
      } else {
        bits[0] = _mm512_load_si512(from);
        bits[1] = _mm512_srli_epi16(bits[0], 2);
        bits[2] = _mm512_srli_epi16(bits[0], 4);
        bits[3] = _mm512_srli_epi16(bits[0], 6);
        from += 64;
      }
      for (int i = 0; i < 4; ++i)
        d[i] = _mm512_dpbusd_epi32(d[i], _mm512_and_si512(bits[i], mask), four_of(x + 4 * i));
    }
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(d[0], d[1]), _mm512_add_epi32(d[2], d[3]));
    __m512i* const sums = reinterpret_cast<__m512i*>(a.sums) + g;
    *sums = _mm512_add_epi32(*sums, _mm512_slli_epi32(sum, unsigned(a.shift())));
  }
}

}  // namespace

void slice_dot_vnni(const SliceDotArgs& a) {
  a.index == 0 ? slice_dot_of<true>(a) : slice_dot_of<false>(a);
}

}  // namespace russet
