// sdot: four rows a register, one instruction for each four of a tile's sixteen rows. The bits of a slice are
// small and not negative, so signed products are right as they are.
#include <arm_neon.h>

#include <cstddef>

#include "kernels/slice_dot/slice_dot.h"

namespace russet {
namespace {

template <int shift>
inline int8x16_t bits_of(uint8x16_t byte, uint8x16_t mask) {
  if constexpr (shift == 0)
    return vreinterpretq_s8_u8(vandq_u8(byte, mask));
  else
    return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(byte, shift), mask));
}

template <bool high>
inline void slice_dot_of(const SliceDotArgs& a) {
  const uint8x16_t mask = vdupq_n_u8(high ? 15 : 3);
  const uint8_t* from = a.slice;
  const int8_t* x = a.x;
  for (int g = 0; g < a.n_cols / a.group_size; ++g) {
    int32x4_t d[4] = {};
    for (int c = 0; c < a.group_size; c += 16, x += 16) {
      const int8x16_t sixteen = vld1q_s8(x);
      for (int v = 0; v < 4; ++v) {
        if constexpr (high) {
          const uint8x16_t early = vld1q_u8(from + 16 * v), late = vld1q_u8(from + 64 + 16 * v);
          d[v] = vdotq_laneq_s32(d[v], bits_of<0>(early, mask), sixteen, 0);
          d[v] = vdotq_laneq_s32(d[v], bits_of<4>(early, mask), sixteen, 1);
          d[v] = vdotq_laneq_s32(d[v], bits_of<0>(late, mask), sixteen, 2);
          d[v] = vdotq_laneq_s32(d[v], bits_of<4>(late, mask), sixteen, 3);
        } else {
          const uint8x16_t byte = vld1q_u8(from + 16 * v);
          d[v] = vdotq_laneq_s32(d[v], bits_of<0>(byte, mask), sixteen, 0);
          d[v] = vdotq_laneq_s32(d[v], bits_of<2>(byte, mask), sixteen, 1);
          d[v] = vdotq_laneq_s32(d[v], bits_of<4>(byte, mask), sixteen, 2);
          d[v] = vdotq_laneq_s32(d[v], bits_of<6>(byte, mask), sixteen, 3);
        }
      }
      from += high ? 128 : 64;
    }
    int32_t* const sums = a.sums + 16 * g;
    const int32x4_t shift = vdupq_n_s32(a.shift());
    for (int v = 0; v < 4; ++v)
      vst1q_s32(sums + 4 * v, vaddq_s32(vld1q_s32(sums + 4 * v), vshlq_s32(d[v], shift)));
  }
}

}  // namespace

void slice_dot_dotprod(const SliceDotArgs& a) {
  a.index == 0 ? slice_dot_of<true>(a) : slice_dot_of<false>(a);
}

}  // namespace russet
