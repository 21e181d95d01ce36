// What the kernels for AVX-512 VNNI and AMX share: sixteen scales as floats, and which rows of a band exist.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "core/float16.h"
#include "weights/packed.h"

namespace russet {
namespace {

inline __m512 load_16(const float* p) {
  return _mm512_load_ps(p);
}
inline __m512 load_16(const f16* p) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 load_16(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Rows of band b that are not past the last.
inline __mmask16 rows_left(const Packed& w, int b) {
  return __mmask16((1u << std::clamp(w.n_rows - b * kBandRows, 0, kBandRows)) - 1);
}

}  // namespace
}  // namespace russet
