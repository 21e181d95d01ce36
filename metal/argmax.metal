// argmax: tokens[t] = the lowest index of the largest of logits[t]; -1 where one of them is NaN
//   logits [n_tokens, n] float    tokens [n_tokens] int32
//
// argmax_parts   a threadgroup of kArgmaxThreads finds the best of one part, neighbours side by side
//                grid: (kArgmaxParts, n_tokens)
// argmax         a SIMD-group finds the best of the parts; grid: n_tokens
//
// Bound by memory: one comparison for 4 bytes. 151,936 logits are 608 KB, read once and by all cores, and 4
// bytes go to the host in their place.
#include "args.h"

using namespace russet::metal;

// Of two the larger is better, and of equals the first. NaN is as if +inf had come before all others.
struct Best {
  float value;
  int index;
};

inline Best nothing() { return {-INFINITY, numeric_limits<int>::max()}; }

inline Best better(Best a, Best b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index) ? a : b;
}

// The best of a SIMD-group, for all of its lanes.
inline Best simd_best(Best b) {
  const float value = simd_max(b.value);
  return {value, simd_min(b.value == value ? b.index : nothing().index)};
}

[[kernel]] void argmax_parts(
    constant ArgmaxArgs& args   [[buffer(0)]],
    device const float* logits  [[buffer(1)]],
    device float* values        [[buffer(2)]],
    device int* indices         [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint n_simds = kArgmaxThreads / kSimd;
  threadgroup float values_of_simds[n_simds];
  threadgroup int indices_of_simds[n_simds];
  const uint part = group.x, token = group.y;
  const uint n_each = (args.n + kArgmaxParts - 1) / kArgmaxParts;
  const uint begin = part * n_each, end = min(begin + n_each, args.n);
  logits += ulong(token) * args.n;

  Best best = nothing();
  for (uint i = begin + thread_id; i < end; i += kArgmaxThreads) {
    const float logit = logits[i];
    best = better(best, isnan(logit) ? Best{INFINITY, -1} : Best{logit, int(i)});
  }
  best = simd_best(best);
  if (lane == 0) {
    values_of_simds[simd] = best.value;
    indices_of_simds[simd] = best.index;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simd == 0) {
    best = simd_best(lane < n_simds ? Best{values_of_simds[lane], indices_of_simds[lane]} : nothing());
    if (lane == 0) {
      values[token * kArgmaxParts + part] = best.value;
      indices[token * kArgmaxParts + part] = best.index;
    }
  }
}

[[kernel]] void argmax(
    constant ArgmaxArgs& args   [[buffer(0)]],
    device const float* values  [[buffer(1)]],
    device const int* indices   [[buffer(2)]],
    device int* tokens          [[buffer(3)]],
    uint token [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  Best best = nothing();
  for (uint i = token * kArgmaxParts + lane; i < (token + 1) * kArgmaxParts; i += kSimd)
    best = better(best, Best{values[i], indices[i]});
  best = simd_best(best);
  if (lane == 0) tokens[token] = best.index;
}
