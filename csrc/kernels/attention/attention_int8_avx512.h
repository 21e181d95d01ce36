// What the files of attention in 8 bits for AVX-512 VNNI and for AMX share, of what attention_int8_steps.h
// asks for. vpdpbusd: sixteen sums of four products of unsigned by signed bytes. q goes in as q + 128, and
// 128 times the sum of each key is taken out; weights are never negative.
#pragma once
#include <immintrin.h>

#include "core/simd.h"
#include "kernels/attention/attention_int8.h"

namespace russet {
namespace {

using Ints = __m512i;
constexpr int kOffset = 128;

inline Ints dot(Ints sums, int32_t four, const int8_t* tile) {
  return _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(four), _mm512_loadu_si512(tile));
}
inline Vec to_floats(Ints sums) {
  return {_mm512_cvtepi32_ps(sums)};
}
inline void to_bytes(Vec a, int8_t* bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline void interleave(const int8_t* rows, int stride, int n, int8_t* tile) {
  for (int i = 0; i < n; i += 16, tile += 64) {
    __m128i row[4];
    for (int u = 0; u < 4; ++u)
      row[u] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + u * stride + i));
    const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
    const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
    __m128i* to = reinterpret_cast<__m128i*>(tile);
    _mm_storeu_si128(to, _mm_unpacklo_epi16(low01, low23));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
  }
}

}  // namespace
}  // namespace russet
