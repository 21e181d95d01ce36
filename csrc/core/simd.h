// One vector of floats for the instruction set this file is compiled for, so that a kernel's loop is written
// once.
//
// Included by the <op>_simd.cpp files, which CMake builds once per ISA with that ISA's flags:
// RUSSET_FOR_ISA(matvec) is matvec_avx2 in one object and matvec_avx512 in the next. Every name here lives in
// an anonymous namespace, so that the linker can never merge two ISAs into one symbol.
//
// where_less(a, b, yes, no) is, lane by lane, yes where a < b and no elsewhere, also where one is NaN. load()
// widens exactly; store() rounds to the nearest as to_f16() and to_bf16() do, to int8 whole numbers alone.
#pragma once
#include <cmath>
#include <cstring>

#include "core/float16.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RUSSET_JOIN_(name, isa) name##_##isa
#define RUSSET_JOIN(name, isa) RUSSET_JOIN_(name, isa)
#define RUSSET_FOR_ISA(name) RUSSET_JOIN(name, RUSSET_ISA)

namespace russet {
namespace {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int width = 16;
  __m512 v;
};
inline Vec splat(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline Vec load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Vec load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
inline void store(f16* p, Vec a) {
  const __m256i half = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}
inline void store(bf16* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v), upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i nan = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  const __m512i half =
      _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), _mm512_srli_epi32(sum, 16), nan);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(half));
}
inline void store(int8_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline Vec power_of_2(Vec n) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_add_ps(n.v, _mm512_set1_ps(127))), 23))};
}
inline float sum(Vec a) {
  return _mm512_reduce_add_ps(a.v);
}
inline float max_of(Vec a) {
  return _mm512_reduce_max_ps(a.v);
}
inline __m256 fold(__m512 a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}

#elif defined(__AVX2__)

inline __m256 fold(__m256 a) {
  return a;
}
struct Vec {
  static constexpr int width = 8;
  __m256 v;
};
inline Vec splat(float x) {
  return {_mm256_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
inline Vec load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec load(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline Vec load(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.v);
}
inline void store(f16* p, Vec a) {
  const __m128i half = _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
}
inline void store(bf16* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v), upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i half = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), nan,
                                          _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
inline void store(int8_t* p, Vec a) {
  const __m256i wide = _mm256_cvtps_epi32(a.v);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.v, b.v)};
}
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline Vec power_of_2(Vec n) {
  return {_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_add_ps(n.v, _mm256_set1_ps(127))), 23))};
}
inline float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float max_of(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#elif defined(__aarch64__)

struct Vec {
  static constexpr int width = 4;
  float32x4_t v;
};
inline Vec splat(float x) {
  return {vdupq_n_f32(x)};
}
inline Vec load(const float* p) {
  return {vld1q_f32(p)};
}
inline Vec load(const f16* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
inline Vec load(const bf16* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
inline Vec load(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))))};
}
inline void store(float* p, Vec a) {
  vst1q_f32(p, a.v);
}
inline void store(f16* p, Vec a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v)));
}
inline void store(bf16* p, Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v), upper = vshrq_n_u32(bits, 16);
  const uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
  const uint32x4_t sum = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t nan = vorrq_u32(upper, vdupq_n_u32(0x40));
  const uint32x4_t half = vbslq_u32(vceqq_f32(a.v, a.v), vshrq_n_u32(sum, 16), nan);
  vst1_u16(reinterpret_cast<uint16_t*>(p), vmovn_u32(half));
}
inline void store(int8_t* p, Vec a) {
  const int16x4_t half = vmovn_s32(vcvtnq_s32_f32(a.v));
  const int32x2_t bytes = vreinterpret_s32_s8(vmovn_s16(vcombine_s16(half, half)));
  const int32_t four = vget_lane_s32(bytes, 0);
  std::memcpy(p, &four, sizeof four);
}
inline Vec operator+(Vec a, Vec b) {
  return {vaddq_f32(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {vsubq_f32(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {vmulq_f32(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {vdivq_f32(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
inline Vec max(Vec a, Vec b) {
  return {vmaxq_f32(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {vminq_f32(a.v, b.v)};
}
inline Vec round(Vec a) {
  return {vrndnq_f32(a.v)};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), yes.v, no.v)};
}
inline Vec power_of_2(Vec n) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vcvtnq_s32_f32(vaddq_f32(n.v, vdupq_n_f32(127))), 23))};
}
inline float sum(Vec a) {
  return vaddvq_f32(a.v);
}
inline float max_of(Vec a) {
  return vmaxvq_f32(a.v);
}

#else

struct Vec {
  static constexpr int width = 1;
  float v;
};
inline Vec splat(float x) {
  return {x};
}
template <typename T>
inline Vec load(const T* p) {
  return {float_at(p)};
}
inline Vec load(const int8_t* p) {
  return {float(*p)};
}
inline void store(float* p, Vec a) {
  *p = a.v;
}
inline void store(f16* p, Vec a) {
  *p = to_f16(a.v);
}
inline void store(bf16* p, Vec a) {
  *p = to_bf16(a.v);
}
inline void store(int8_t* p, Vec a) {
  *p = int8_t(a.v);
}
inline Vec operator+(Vec a, Vec b) {
  return {a.v + b.v};
}
inline Vec operator-(Vec a, Vec b) {
  return {a.v - b.v};
}
inline Vec operator*(Vec a, Vec b) {
  return {a.v * b.v};
}
inline Vec operator/(Vec a, Vec b) {
  return {a.v / b.v};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {a.v * b.v + c.v};
}
inline Vec max(Vec a, Vec b) {
  return {a.v > b.v ? a.v : b.v};
}
inline Vec min(Vec a, Vec b) {
  return {a.v < b.v ? a.v : b.v};
}
inline Vec round(Vec a) {
  return {std::nearbyint(a.v)};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {a.v < b.v ? yes.v : no.v};
}
inline Vec power_of_2(Vec n) {
  return {n.v > -127 ? std::ldexp(1.0f, int(n.v)) : 0.0f};
}
inline float sum(Vec a) {
  return a.v;
}
inline float max_of(Vec a) {
  return a.v;
}

#endif

// e^x within 2 ulp for x in [-87.3, 88]; below it is exactly 0 (2^-127 has no normal float), above it stays
// at e^88.
//
// x = n ln2 + r with |r| <= ln2 / 2; ln2 in two parts keeps r exact; e^r by its series to r^6 (1e-7 relative
// at the ends, taken up by fitted coefficients: S. Moshier, Cephes library, expf).
inline Vec exp(Vec x) {
  x = min(splat(88.0f), max(splat(-88.0296919f), x));  // in this order a NaN stays one
  const Vec n = round(x * splat(1.44269504088896341f));
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  return p * power_of_2(n);
}

// tanh(x) = 1 - 2 / (e^2x + 1), within 2e-7 of the true value.
inline Vec tanh(Vec x) {
  return splat(1.0f) - splat(2.0f) / (exp(x + x) + splat(1.0f));
}

// sums[i] = sum of a[i], for four vectors at once: a third of the steps of four single sums.
inline void sum_4(const Vec (&a)[4], float* sums) {
#if defined(__AVX512F__) || defined(__AVX2__)
  const __m256 ab = _mm256_hadd_ps(fold(a[0].v), fold(a[1].v)),
               cd = _mm256_hadd_ps(fold(a[2].v), fold(a[3].v));
  const __m256 abcd = _mm256_hadd_ps(ab, cd);  // a b c d of the lower half, then of the upper
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
#elif defined(__aarch64__)
  vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a[0].v, a[1].v), vpaddq_f32(a[2].v, a[3].v)));
#else
  for (int i = 0; i < 4; ++i) sums[i] = sum(a[i]);
#endif
}

// Loads the first n < width elements, zero beyond; stores the first n.
template <typename T>
inline Vec load_part(const T* p, int n) {
  T lanes[Vec::width] = {};
  std::memcpy(lanes, p, size_t(n) * sizeof(T));
  return load(lanes);
}
template <typename T>
inline void store_part(T* p, Vec a, int n) {
  T lanes[Vec::width];
  store(lanes, a);
  std::memcpy(p, lanes, size_t(n) * sizeof(T));
}

}  // namespace
}  // namespace russet
