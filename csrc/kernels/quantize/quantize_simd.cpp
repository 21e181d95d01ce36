// Two passes over a group that lies in registers or the L1 cache. Codes are whole numbers in float until they
// are stored, so their sum is exact in any order.
#include <limits>

#include "core/simd.h"
#include "kernels/quantize/quantize.h"

namespace russet {
namespace {

void store_codes(int8_t* p, Vec whole) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v)));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtps_epi32(whole.v);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
#elif defined(__aarch64__)
  const int16x4_t half = vmovn_s32(vcvtnq_s32_f32(whole.v));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
  vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
#else
  *p = int8_t(whole.v);
#endif
}

}  // namespace

void RUSSET_FOR_ISA(quantize)(const QuantizeArgs& a) {
  const int n_groups = a.n_tokens * (a.n_cols / a.group_size);
  for (int g = 0; g < n_groups; ++g) {
    const float* x = a.x + size_t(g) * size_t(a.group_size);
    int8_t* codes = a.codes + size_t(g) * size_t(a.group_size);
    Vec most = splat(0), poison = splat(0);
    for (int i = 0; i < a.group_size; i += Vec::width) {
      const Vec v = load(x + i);
      most = max(most, max(v, splat(0) - v));
      poison = fma(v, splat(0), poison);  // 0 times NaN or infinity is NaN, times anything else 0
    }
    const bool finite = sum(poison) == 0;
    const float largest = max_of(most);
    const float turn = finite && largest >= kLeastMax ? 127 / largest : 0;
    Vec total = splat(0);
    for (int i = 0; i < a.group_size; i += Vec::width) {
      const Vec whole = finite ? round(load(x + i) * splat(turn)) : splat(0);
      store_codes(codes + i, whole);
      total = total + whole;
    }
    a.scales[g] = !finite ? std::numeric_limits<float>::quiet_NaN() : turn > 0 ? largest / 127 : 0;
    a.sums[g] = int32_t(sum(total));
  }
}

}  // namespace russet
