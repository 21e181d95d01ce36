// The search takes as many groups at once as a vector has lanes, one in each: what it does to a group is then
// the plain loop of the reference, and no sum crosses lanes. Codes and symmetric groups go along the group.
#include <cstring>
#include <limits>

#include "core/simd.h"
#include "kernels/fit/fit.h"
#include "kernels/fit/fit_steps.h"

namespace russet {
namespace {

constexpr int kLanes = Vec::width;

Vec abs(Vec x) {
  return max(x, splat(0) - x);
}

// ---- symmetric ----

float symmetric_scale_of(const float* w, const FitArgs& a) {
  Vec most = splat(0), least = splat(std::numeric_limits<float>::infinity());
  for (int i = 0; i < a.group_size; i += kLanes) {
    const Vec size = abs(load(w + i));
    most = max(most, size);
    least = min(least, size);
  }
  return symmetric_scale(-max_of(splat(0) - least), max_of(most), a.bits, a.dtype);
}

// ---- asymmetric: lanes are groups ----

struct Round {
  Vec error, scale, bias;
};

// w [n, lanes]
Round round_of(const float* w, int n, Vec scale, Vec bias, Vec most_code) {
  const Vec nan = splat(std::numeric_limits<float>::quiet_NaN());
  scale = where_less(abs(scale), splat(kLeastStep), nan, scale);
  const Vec inverse = splat(1) / scale, down = splat(0) - scale;
  Vec error = splat(0), q_sum = splat(0), qq_sum = splat(0), d_sum = splat(0), qd_sum = splat(0);
  for (int i = 0; i < n; ++i) {
    const Vec x = load(w + i * kLanes) - bias;
    const Vec q = round(min(max(x * inverse, splat(0)), most_code));
    const Vec d = fma(down, q, x);
    error = fma(d, d, error);
    q_sum = q_sum + q;
    qq_sum = fma(q, q, qq_sum);
    d_sum = d_sum + d;
    qd_sum = fma(q, d, qd_sum);
  }
  const Vec count = splat(float(n)), q_down = splat(0) - q_sum;
  const Vec spread = fma(q_down, q_sum, count * qq_sum);
  const Vec slope = fma(q_down, d_sum, count * qd_sum) / spread;
  return {error, scale + slope, bias + fma(slope, q_down, d_sum) / count};
}

// Groups first to first + n, n <= lanes.
void search(const FitArgs& a, int first, int n) {
  float w[kMostGroup * kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {  // lanes without a group do as the last one
    const float* group = a.w + size_t(first + (lane < n ? lane : n - 1)) * size_t(a.group_size);
    for (int i = 0; i < a.group_size; ++i) w[i * kLanes + lane] = group[i];
  }
  Vec low = load(w), high = low;
  for (int i = 1; i < a.group_size; ++i) {
    low = min(low, load(w + i * kLanes));
    high = max(high, load(w + i * kLanes));
  }
  float lows[kLanes], highs[kLanes], scales[kLanes], biases[kLanes];
  store(lows, low);
  store(highs, high);
  const Vec most_code = splat(float((1 << a.bits) - 1));
  Vec best_scale = splat(0), best_bias = splat(0),
      least_error = splat(std::numeric_limits<float>::infinity());
  for (int start = 0; start < n_starts(a.bits); ++start) {
    start_of(start, lows, highs, kLanes, a.bits, a.dtype, scales, biases);
    if (start == 0) best_scale = load(scales), best_bias = load(biases);
    for (int i = 0; i < kRefits; ++i) {
      const Vec scale = load(scales), bias = load(biases);
      const Round round = round_of(w, a.group_size, scale, bias, most_code);
      best_scale = where_less(round.error, least_error, scale, best_scale);
      best_bias = where_less(round.error, least_error, bias, best_bias);
      least_error = where_less(round.error, least_error, round.error, least_error);
      store(scales, round.scale);
      store(biases, round.bias);
      round_to(a.dtype, scales, kLanes);
      round_to(a.dtype, biases, kLanes);
    }
  }
  store_part(a.scales + first, best_scale, n);
  store_part(a.biases + first, best_bias, n);
}

// ---- codes ----

void store_codes(uint8_t* p, Vec whole) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v)));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtps_epi32(whole.v);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(half, half));
#elif defined(__aarch64__)
  const uint16x4_t half = vmovn_u32(vcvtnq_u32_f32(whole.v));
  const uint8x8_t bytes = vmovn_u16(vcombine_u16(half, half));
  vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(bytes), 0);
#else
  *p = uint8_t(whole.v);
#endif
}

// code = nearest((w - off) / scale) + from, a division's own rounding made good.
void write_codes(const float* w, int n, float scale, float off, float from, Vec most_code, uint8_t* codes) {
  const float shrink = shrink_for(off), turn = scale < 0 ? -shrink : shrink;
  const Vec factor = splat(turn), shift = splat(-off * turn), step = splat(scale * turn);
  const Vec down = splat(0) - step, one = splat(1);
  for (int i = 0; i < n; i += kLanes) {
    const Vec x = fma(load(w + i), factor, shift);
    Vec q = round(x / step);
    const Vec d = fma(down, q, x), twice = d + d;
    q = q + where_less(step, twice, one, splat(0)) - where_less(twice, down, one, splat(0));
    store_codes(codes + i, min(max(q + splat(from), splat(0)), most_code));
  }
}

}  // namespace

void RUSSET_FOR_ISA(fit)(const FitArgs& a) {
  const float center = float(1 << (a.bits - 1));
  if (!a.symmetric)
    for (int g = 0; g < a.n_groups; g += kLanes)
      search(a, g, a.n_groups - g < kLanes ? a.n_groups - g : kLanes);
  for (int g = 0; g < a.n_groups; ++g) {
    const float* w = a.w + size_t(g) * size_t(a.group_size);
    uint8_t* codes = a.codes + size_t(g) * size_t(a.group_size);
    float &scale = a.scales[g], &bias = a.biases[g];
    Vec poison = splat(0);
    for (int i = 0; i < a.group_size; i += kLanes)
      poison = fma(load(w + i), splat(0), poison);  // 0 times NaN or infinity is NaN, times anything else 0
    const bool finite = sum(poison) == 0;
    if (!finite) {
      scale = bias = std::numeric_limits<float>::quiet_NaN();
    } else if (a.symmetric) {
      scale = symmetric_scale_of(w, a);
      bias = -center * scale;
    }
    // Symmetric codes are counted from the center, so that no bias is taken off and rounded.
    if (finite && scale != 0)
      write_codes(w, a.group_size, scale, a.symmetric ? 0 : bias, a.symmetric ? center : 0,
                  splat(2 * center - 1), codes);
    else
      std::memset(codes, finite ? int(center) : 0, size_t(a.group_size));
  }
}

}  // namespace russet
