// Kernels that are wrong, each in one way, at the line that says so: test_metal_sim_faults.py looks for these lines.
#include <metal_stdlib>
using namespace metal;

kernel void missing_barrier(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[64];
  local[i] = float(i);
  y[i] = local[63 - i];  // missing_barrier
}

// The same, where only some schedules show it: each SIMD-group reads what the one before it wrote.
kernel void missing_barrier_between_simdgroups(
    device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[64];
  local[i] = float(i);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = i < 32 ? float(i) : local[i - 32];  // missing_barrier_between_simdgroups
}

kernel void barrier_without_memory(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[64];
  local[i] = float(i);
  threadgroup_barrier(mem_flags::mem_none);
  y[i] = local[63 - i];  // barrier_without_memory
}

kernel void read_past_the_end(
    device const float* x [[buffer(0)]], device float* y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  y[i] = x[i + 1];  // read_past_the_end
}

kernel void write_past_the_end(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  y[i + 1] = 1.0f;  // write_past_the_end
}

kernel void write_before_the_start(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  y[int(i) - 1] = 1.0f;  // write_before_the_start
}

kernel void vector_past_the_end(
    device const float* x [[buffer(0)]], device float* y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  y[i] = dot(((device const float4*)(x + i))[0], float4(1.0f));  // vector_past_the_end
}

kernel void past_the_end_of_threadgroup_memory(
    device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[64];
  local[i + 1] = float(i);  // past_the_end_of_threadgroup_memory
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = local[i];
}

kernel void unwritten_threadgroup_memory(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[64];
  if (y[0] > 0) local[i] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = local[i];  // unwritten_threadgroup_memory
}

kernel void divergent_barrier(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  y[i] = 1.0f;
  if (i < 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // divergent_barrier
    y[i] = 2.0f;
  }
}

kernel void two_barriers(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  if (i < 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // two_barriers
    y[i] = 2.0f;
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // two_barriers
    y[i] = 1.0f;
  }
}

kernel void early_return(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  if (i == 40) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // early_return
  y[i] = 1.0f;
}

kernel void divergent_simd_sum(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  if (i % 2 == 0) {
    y[i] = simd_sum(y[i]);  // divergent_simd_sum
  }
}

kernel void shuffle_from_nowhere(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  y[i] = simd_shuffle(y[i], 32);  // shuffle_from_nowhere
}

kernel void too_much_threadgroup_memory(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[8192];
  threadgroup half more[8];
  local[i] = y[i];
  more[i % 8] = half(local[i]);
  y[i] = local[i];
}

kernel void some_threadgroup_memory(
    device float* y [[buffer(0)]], threadgroup float* given [[threadgroup(0)]],
    uint i [[thread_position_in_threadgroup]]) {
  threadgroup float local[4096];
  local[i] = given[i] = y[i];
  y[i] = local[i] + given[i];
}

kernel void takes_a_struct(device float* y [[buffer(0)]], constant float4& four [[buffer(1)]]) { y[0] = four.w; }

constant int never_given [[function_constant(3)]];
kernel void reads_a_constant(device float* y [[buffer(0)]]) { y[0] = float(never_given); }

kernel void written_by_two_threadgroups(device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  y[i] = float(i);  // written_by_two_threadgroups
}

kernel void reads_another_threadgroup(
    device float* y [[buffer(0)]], uint i [[thread_position_in_threadgroup]],
    uint group [[threadgroup_position_in_grid]]) {
  y[group * 64 + i] = group == 0 ? 1.0f : y[i] + 1.0f;  // reads_another_threadgroup
}
