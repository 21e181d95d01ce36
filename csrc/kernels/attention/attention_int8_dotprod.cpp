// sdot: four sums of four products of signed bytes.
#include <arm_neon.h>

#include "core/simd.h"
#include "kernels/attention/attention_int8.h"

namespace russet {
namespace {

using Ints = int32x4_t;
constexpr int kOffset = 0, kTileRows = 0;

inline Ints dot(Ints sums, int32_t four, const int8_t* tile) {
  return vdotq_s32(sums, vreinterpretq_s8_s32(vdupq_n_s32(four)), vld1q_s8(tile));
}
inline Vec to_floats(Ints sums) {
  return {vcvtq_f32_s32(sums)};
}
inline void to_bytes(Vec a, int8_t* bytes) {
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(a.v));
  vst1_lane_s32(reinterpret_cast<int32_t*>(bytes), vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))),
                0);
}
inline void interleave(const int8_t* rows, int stride, int n, int8_t* tile) {
  for (int i = 0; i < n; i += 16, tile += 64) {
    int8x16x4_t row;
    for (int u = 0; u < 4; ++u) row.val[u] = vld1q_s8(rows + u * stride + i);
    vst4q_s8(tile, row);
  }
}

}  // namespace
}  // namespace russet

#include "kernels/attention/attention_int8_steps.h"

namespace russet {

void attention_sage_dotprod(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<false>(args, of_keys, partial);
}
void attention_integer_dotprod(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<true>(args, of_keys, partial);
}

}  // namespace russet
