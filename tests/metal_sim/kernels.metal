// Kernels that are right: what the simulator computes is compared with numpy in test_metal_sim.py.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

kernel void add(
    device const float* a  [[buffer(0)]],
    device const float* b  [[buffer(1)]],
    device float* sum      [[buffer(2)]],
    constant uint& n       [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
  if (i < n) sum[i] = a[i] + b[i];
}

constant constexpr uint kTile = 16;

// c = a * b, one tile of threadgroup memory after the other
kernel void tiled_matmul(
    device const float* a  [[buffer(0)]],
    device const float* b  [[buffer(1)]],
    device float* c        [[buffer(2)]],
    constant uint3& sizes  [[buffer(3)]],  // rows of a, columns of b, columns of a
    uint2 group [[threadgroup_position_in_grid]], uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float a_tile[kTile][kTile], b_tile[kTile][kTile];
  const uint row = group.y * kTile + t.y, column = group.x * kTile + t.x;
  float sum = 0;
  for (uint k0 = 0; k0 < sizes.z; k0 += kTile) {
    a_tile[t.y][t.x] = row < sizes.x && k0 + t.x < sizes.z ? a[row * sizes.z + k0 + t.x] : 0.0f;
    b_tile[t.y][t.x] = k0 + t.y < sizes.z && column < sizes.y ? b[(k0 + t.y) * sizes.y + column] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < kTile; k++) sum += a_tile[t.y][k] * b_tile[k][t.x];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (row < sizes.x && column < sizes.y) c[row * sizes.y + column] = sum;
}

// y[row] = sum of x[row], in float, by all SIMD-groups
template <typename T>
[[kernel]] void row_sum(
    device const T* x  [[buffer(0)]],
    device T* y        [[buffer(1)]],
    constant uint& n   [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]], uint i [[thread_position_in_threadgroup]],
    uint n_threads [[threads_per_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint n_simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[32];
  float sum = 0;
  for (uint k = i; k < n; k += n_threads) sum += float(x[row * n + k]);
  sum = simd_sum(sum);
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum = simd_sum(lane < n_simdgroups ? partial[lane] : 0.0f);
  if (i == 0) y[row] = T(sum);
}

// c [16, 16] = a [16, k] * b [16, k]^T, by one SIMD-group
template <typename T>
[[kernel, max_total_threads_per_threadgroup(32)]] void matrices(
    device const T* a  [[buffer(0)]],
    device const T* b  [[buffer(1)]],
    device float* c    [[buffer(2)]],
    constant uint& k   [[buffer(3)]]) {
  simdgroup_matrix<float, 8, 8> sums[2][2];
  for (ushort i = 0; i < 4; i++) sums[i / 2][i % 2] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint k0 = 0; k0 < k; k0 += 8) {
    simdgroup_matrix<T, 8, 8> a_tile, b_tile;
    for (ushort i = 0; i < 4; i++) {
      simdgroup_load(a_tile, a + (i / 2) * 8 * k + k0, k);
      simdgroup_load(b_tile, b + (i % 2) * 8 * k, k, ulong2(k0, 0), true);
      simdgroup_multiply_accumulate(sums[i / 2][i % 2], a_tile, b_tile, sums[i / 2][i % 2]);
    }
  }
  for (ushort i = 0; i < 4; i++) simdgroup_store(sums[i / 2][i % 2], c + (i / 2) * 8 * 16 + (i % 2) * 8, 16);
}

// Where each lane has its two elements: the lane's number, twice, stored as a matrix.
kernel void matrix_layout(device float* m [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 mine;
  mine.thread_elements()[0] = float(lane);
  mine.thread_elements()[1] = float(lane);
  simdgroup_store(mine, m);
}

// counts[x[i]] += 1, in threadgroup memory first
kernel void histogram(
    device const uchar* x        [[buffer(0)]],
    device atomic_uint* counts   [[buffer(1)]],
    device atomic_float* total   [[buffer(2)]],
    device atomic_int* largest   [[buffer(3)]],
    uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint local[16];
  if (t < 16) atomic_store_explicit(&local[t], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&local[x[i] % 16], 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 16) atomic_fetch_add_explicit(&counts[t], atomic_load_explicit(&local[t], memory_order_relaxed), memory_order_relaxed);
  atomic_fetch_add_explicit(total, 0.5f, memory_order_relaxed);
  atomic_fetch_max_explicit(largest, int(x[i]), memory_order_relaxed);
}

constant bool doubled [[function_constant(0)]];
constant int offset [[function_constant(1)]];
constant float factor [[function_constant(2)]];
constant int both = doubled ? 2 * offset : offset;

kernel void constants(
    device float* y             [[buffer(0)]],
    device const float* extra   [[buffer(1), function_constant(doubled)]],
    uint i [[thread_position_in_grid]]) {
  y[i] = float(both) + (is_function_constant_defined(factor) ? factor : 0.5f);
  if (doubled) y[i] += extra[i];
}

// y = x backwards, in memory whose size the launch gives
kernel void reversed(
    device const half* x     [[buffer(0)]],
    device half* y           [[buffer(1)]],
    threadgroup half* local  [[threadgroup(0)]],
    uint i [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  local[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = local[n - 1 - i];
}

// What every thread knows about its place.
kernel void places(
    device uint* out [[buffer(0)]],
    uint3 in_grid [[thread_position_in_grid]], ushort3 in_group [[thread_position_in_threadgroup]],
    uint3 group [[threadgroup_position_in_grid]], uint3 group_size [[threads_per_threadgroup]],
    uint3 grid [[threads_per_grid]], uint3 n_groups [[threadgroups_per_grid]],
    ushort index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], ushort n_simdgroups [[simdgroups_per_threadgroup]],
    uint width [[threads_per_simdgroup]]) {
  const uint at = (in_grid.z * grid.y + in_grid.y) * grid.x + in_grid.x;
  out += at * 23;
  const uint3 all[6] = {in_grid, uint3(in_group), group, group_size, grid, n_groups};
  for (uint i = 0; i < 6; i++) {
    out[3 * i] = all[i].x;
    out[3 * i + 1] = all[i].y;
    out[3 * i + 2] = all[i].z;
  }
  out[18] = index;
  out[19] = lane;
  out[20] = simdgroup;
  out[21] = n_simdgroups;
  out[22] = width;
}

// One row of `out` for each function of a SIMD-group.
kernel void simd_functions(
    device const int* x  [[buffer(0)]],
    device int* out      [[buffer(1)]],
    uint i [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  const int v = x[i];
  out += i;
  out[0 * n] = simd_sum(v);
  out[1 * n] = simd_max(v);
  out[2 * n] = simd_min(v);
  out[3 * n] = simd_and(v);
  out[4 * n] = simd_or(v);
  out[5 * n] = simd_xor(v);
  out[6 * n] = simd_prefix_inclusive_sum(v);
  out[7 * n] = simd_prefix_exclusive_sum(v);
  out[8 * n] = simd_shuffle(v, 5);
  out[9 * n] = simd_shuffle_xor(v, 3);
  out[10 * n] = simd_shuffle_down(v, 2);
  out[11 * n] = simd_shuffle_up(v, 2);
  out[12 * n] = simd_broadcast(v, 7);
  out[13 * n] = simd_broadcast_first(v);
  out[14 * n] = simd_any(v > 900) ? 1 : 0;
  out[15 * n] = simd_all(v > -1000) ? 1 : 0;
  out[16 * n] = int(ulong(simd_ballot(v > 0)));
  out[17 * n] = quad_sum(v);
  out[18 * n] = simd_shuffle_and_fill_down(v, -v, 4);
  out[19 * n] = simd_shuffle_and_fill_up(v, -v, 4);
}

struct Sizes {
  uint n;
  float3 unit;  // 16 bytes, and on a multiple of 16
  half2 pair;
};

// Vectors: constructors, swizzles, arithmetic, comparison, select, as_type, packed types.
kernel void vectors(
    device const float4* x         [[buffer(0)]],
    device float4* y               [[buffer(1)]],
    device const packed_float3* p  [[buffer(2)]],
    device const uchar4* q         [[buffer(3)]],
    constant Sizes& sizes          [[buffer(4)]],
    uint i [[thread_position_in_grid]]) {
  if (i >= sizes.n) return;
  float4 v = x[i];
  v.xy = v.yx;
  v = select(v, -v, v < float4(0.0f));
  const float3 packed = float3(p[i]) * sizes.unit;
  y[4 * i] = fma(v, float4(2.0f), float4(packed, 1.0f));
  y[4 * i + 1] = float4(q[i]) / 255.0f;
  y[4 * i + 2] = float4(dot(v, v), length(packed), clamp(v.x, 0.0f, 0.5f), float(as_type<uint>(v.w) >> 23));
  const half2 h = half2(v.zw) * sizes.pair;
  y[4 * i + 3] = float4(float2(h), precise::exp(-v.x), fast::tanh(v.y));
}

// Rounding: bfloat after every operation, half likewise; a literal without a suffix is a float.
kernel void rounding(
    device const bfloat* b  [[buffer(0)]],
    device const half* h    [[buffer(1)]],
    device bfloat* b_out    [[buffer(2)]],
    device half* h_out      [[buffer(3)]],
    device float* f_out     [[buffer(4)]],
    uint i [[thread_position_in_grid]]) {
  b_out[i] = b[i] * b[i] + b[i];
  h_out[i] = h[i] * h[i] + h[i];
  f_out[i] = float(h[i]) * 0.1;
}

template [[host_name("row_sum_f32")]]   [[kernel]] decltype(row_sum<float>)   row_sum<float>;
template [[host_name("row_sum_f16")]]   [[kernel]] decltype(row_sum<half>)    row_sum<half>;
template [[host_name("row_sum_bf16")]]  [[kernel]] decltype(row_sum<bfloat>)  row_sum<bfloat>;
template [[host_name("matrices_f32")]]  [[kernel]] decltype(matrices<float>)  matrices<float>;
template [[host_name("matrices_f16")]]  [[kernel]] decltype(matrices<half>)   matrices<half>;
template [[host_name("matrices_bf16")]] [[kernel]] decltype(matrices<bfloat>) matrices<bfloat>;
