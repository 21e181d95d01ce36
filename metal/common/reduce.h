// A sum over a threadgroup that all of its threads see. (Over a SIMD-group it is one instruction: simd_sum.)
#pragma once
#include "args.h"

// Every thread must call, in a threadgroup of n_threads, a multiple of kSimd. One barrier.
//   scratch  [n_threads / kSimd], not in use: two sums in a row take two
template <uint n_threads>
inline float group_sum(float value, threadgroup float* scratch, uint thread_id) {
  const float of_simd = simd_sum(value);
  if (thread_id % russet::metal::kSimd == 0) scratch[thread_id / russet::metal::kSimd] = of_simd;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0;
  for (uint i = 0; i < n_threads / russet::metal::kSimd; ++i) sum += scratch[i];
  return sum;
}
