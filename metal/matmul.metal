// matmul_T_W             y[t] = W n[t] + linear_bias
// matmul_residual_T_W    x[t] += scale * (W n[t] + linear_bias)
// matmul_gate_T_W        h[t] = act(gate n[t]) * (up n[t]), or act(gate n[t])
// matmul_float_T_W       y[t] = softcap * tanh(z / softcap), z = scale * (W n[t] + linear_bias), or z
// for many tokens
//
//   shapes and buffers: args.h; W in any of the ways of common/weights.h, n of T, sums float
//   grid: (ceil(n_rows / kMatmulRows), ceil(n_tokens / kMatmulTokens)); threads: (kSimd, kMatmulSimds)
//   of gate with an up half as many rows: the upper half of the tile is of up
//
// A threadgroup makes a tile of kMatmulRows rows by kMatmulTokens tokens. Step by step, its threads bring
// kStep columns of both to threadgroup memory, W dequantised, and load those of the next step while its
// SIMD-groups multiply matrices of 8 x 8: each a quarter of the tile, 32 rows by 16 tokens in 8 accumulators.
//
// Elements in threadgroup memory, the factors, are half where T is, else float: bfloat would leave a
// dequantised weight 8 bits, and not every GPU multiplies it natively, while as float it is exact.
// Accumulators are float. (As half, a weight beyond 65,504 is inf.)
//
// Bound by arithmetic, 2 n_tokens n_rows n_cols flops. A step of 131,072 flops reads 64 x 32 weights and 32 x
// 32 elements of n, 2,176 + 2,048 bytes of int8 (groups of 64, f16 scales) and f16, most of them from caches:
// 31 flops a byte, where an M1 does 38 for each byte that its memory delivers. From threadgroup memory 6
// matrices are loaded for 8 products.
#include "args.h"
#include "common/activation.h"
#include "common/weights.h"

using namespace russet::metal;

enum : uint {
  kThreads = uint(kSimd) * uint(kMatmulSimds),
  kTileSums = uint(kMatmulRows) * uint(kMatmulTokens),
  kStep = 32,  // columns, of one group

  // A step lies in threadgroup memory row by row; the 8 more let eight rows fall into different banks.
  kStride = kStep + 8,
  kSumStride = uint(kMatmulRows) + 8,

  // So many threads bring a row of a step, so many columns each.
  kThreadsPerRow = kThreads / uint(kMatmulRows),
  kThreadsPerToken = kThreads / uint(kMatmulTokens),
  kRowShare = kStep / kThreadsPerRow,
  kTokenShare = kStep / kThreadsPerToken,

  // Matrices of 8 x 8 in a quarter of the tile.
  kRowTiles = uint(kMatmulRows) / 2 / 8,
  kTokenTiles = uint(kMatmulTokens) / 2 / 8,
};
static_assert(kMatmulSimds == 4, "a quarter of the tile each");

// The type of factors.
template <typename T> struct FactorOf { using type = float; };
template <> struct FactorOf<half> { using type = half; };

// The tile in threadgroup memory: a step of W and n, and when all steps are done the sums.
template <typename T>
struct Tile {
  using E = typename FactorOf<T>::type;
  enum : uint {
    kStepFloats = (uint(kMatmulRows) + uint(kMatmulTokens)) * kStride * sizeof(E) / sizeof(float),
    kSumFloats = uint(kMatmulTokens) * kSumStride,
    kFloats = kStepFloats > kSumFloats ? uint(kStepFloats) : uint(kSumFloats),
  };
};

// One of the tile's sums.
struct Place {
  uint at;  // in threadgroup memory
  uint row, token;
  bool is_within;

  Place(constant MatmulArgs& args, uint2 group, uint i, uint n_tile_rows = kMatmulRows)
      : at(i / kMatmulRows * kSumStride + i % kMatmulRows),
        row(group.x * n_tile_rows + i % kMatmulRows),
        token(group.y * kMatmulTokens + i / kMatmulRows),
        is_within(i % kMatmulRows < n_tile_rows && row < args.n_rows && token < args.n_tokens) {}
};

// What a thread brings of each step.
template <typename T, typename W>
struct Share {
  using E = typename Tile<T>::E;
  static_assert(kRowShare % W::kColumns == 0, "whole pieces");

  W w;                // from this thread's row on
  device const T* n;  // of this thread's token
  uint n_cols;
  uint w_col, n_col;  // where its share of a step begins
  typename W::Piece pieces[kRowShare / W::kColumns];
  vec<T, 4> quads[kTokenShare / 4];

  Share(W w, device const T* n, uint n_cols, uint thread_id)
      : w(w),
        n(n),
        n_cols(n_cols),
        w_col(thread_id % kThreadsPerRow * kRowShare),
        n_col(thread_id % kThreadsPerToken * kTokenShare) {}

  void load(uint col) {
    for (uint i = 0; i < kRowShare / W::kColumns; ++i) pieces[i] = w.load(0, col + w_col + i * W::kColumns);
    for (uint i = 0; i < kTokenShare / 4; ++i) {
      const uint at = col + n_col + 4 * i;
      quads[i] = load4(n + at, W::kRagged ? int(n_cols) - int(at) : 4);
    }
  }

  // To this thread's rows in threadgroup memory.
  void store(threadgroup E* w_row, threadgroup E* n_row) const {
    for (uint i = 0; i < kRowShare / 4; ++i) {
      const float4 weights = pieces[i / W::kQuads].weights(i % W::kQuads);
      *(threadgroup vec<E, 4>*)(w_row + w_col + 4 * i) = vec<E, 4>(weights);
    }
    for (uint i = 0; i < kTokenShare / 4; ++i)
      *(threadgroup vec<E, 4>*)(n_row + n_col + 4 * i) = vec<E, 4>(quads[i]);
  }
};

// memory[t * kSumStride + r] = the tile's sum of token t and row r, for all threads to read.
template <typename T, typename W>
void multiply(threadgroup float* memory, Share<T, W> share, uint thread_id, uint simd) {
  using E = typename Tile<T>::E;
  threadgroup E* w_step = (threadgroup E*)memory;
  threadgroup E* n_step = w_step + kMatmulRows * kStride;
  threadgroup E* w_row = w_step + thread_id / kThreadsPerRow * kStride;
  threadgroup E* n_row = n_step + thread_id / kThreadsPerToken * kStride;

  const uint row = simd % 2 * 8 * kRowTiles, token = simd / 2 * 8 * kTokenTiles;  // of this quarter
  simdgroup_float8x8 sums[kRowTiles][kTokenTiles];
  for (uint r = 0; r < kRowTiles; ++r)
    for (uint t = 0; t < kTokenTiles; ++t) sums[r][t] = make_filled_simdgroup_matrix<float, 8, 8>(0);

  share.load(0);
  for (uint col = 0; col < share.n_cols; col += kStep) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the step before is multiplied
    share.store(w_row, n_row);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (col + kStep < share.n_cols) share.load(col + kStep);
    for (uint k = 0; k < kStep; k += 8) {
      simdgroup_matrix<E, 8, 8> w[kRowTiles], n[kTokenTiles];
      for (uint r = 0; r < kRowTiles; ++r)
        simdgroup_load(w[r], w_step + (row + 8 * r) * kStride + k, kStride);
      for (uint t = 0; t < kTokenTiles; ++t)
        simdgroup_load(n[t], n_step + (token + 8 * t) * kStride + k, kStride, ulong2(0, 0), true);
      for (uint r = 0; r < kRowTiles; ++r)
        for (uint t = 0; t < kTokenTiles; ++t)
          simdgroup_multiply_accumulate(sums[r][t], w[r], n[t], sums[r][t]);
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint r = 0; r < kRowTiles; ++r)
    for (uint t = 0; t < kTokenTiles; ++t)
      simdgroup_store(sums[r][t], memory + (token + 8 * t) * kSumStride + row + 8 * r, kSumStride,
                      ulong2(0, 0), true);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The tile of one matrix. Rows and tokens past the last are read as the last, and not written.
template <typename T, typename W>
void multiply_one(threadgroup float* memory, constant MatmulArgs& args, W w, device const T* n, uint2 group,
                  uint thread_id, uint simd) {
  const uint row = min(group.x * kMatmulRows + thread_id / kThreadsPerRow, args.n_rows - 1);
  const uint token = min(group.y * kMatmulTokens + thread_id / kThreadsPerToken, args.n_tokens - 1);
  multiply(memory, Share<T, W>(w.from_row(row), n + ulong(token) * args.n_cols, args.n_cols, thread_id),
           thread_id, simd);
}

template <typename T, typename W>
[[kernel]] void matmul(
    constant MatmulArgs& args              [[buffer(0)]],
    device const T* n                      [[buffer(1)]],
    device const typename W::Codes* codes  [[buffer(2)]],
    device const typename W::Scale* scales [[buffer(3)]],
    device const typename W::Scale* biases [[buffer(4)]],
    device const float* linear_bias        [[buffer(5)]],
    device T* y                            [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float memory[Tile<T>::kFloats];
  const W w(codes, scales, biases, args.n_cols, args.group_size);
  multiply_one(memory, args, w, n, group, thread_id, simd);
  for (uint i = thread_id; i < kTileSums; i += kThreads) {
    const Place place(args, group, i);
    if (!place.is_within) continue;
    float sum = memory[place.at];
    if (args.has_linear_bias[0]) sum += linear_bias[place.row];
    y[ulong(place.token) * args.n_rows + place.row] = T(sum);
  }
}

template <typename T, typename W>
[[kernel]] void matmul_residual(
    constant MatmulArgs& args              [[buffer(0)]],
    device const T* n                      [[buffer(1)]],
    device const typename W::Codes* codes  [[buffer(2)]],
    device const typename W::Scale* scales [[buffer(3)]],
    device const typename W::Scale* biases [[buffer(4)]],
    device const float* linear_bias        [[buffer(5)]],
    device float* x                        [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float memory[Tile<T>::kFloats];
  const W w(codes, scales, biases, args.n_cols, args.group_size);
  multiply_one(memory, args, w, n, group, thread_id, simd);
  for (uint i = thread_id; i < kTileSums; i += kThreads) {
    const Place place(args, group, i);
    if (!place.is_within) continue;
    float sum = memory[place.at];
    if (args.has_linear_bias[0]) sum += linear_bias[place.row];
    x[ulong(place.token) * args.n_rows + place.row] += args.scale * sum;
  }
}

template <typename T, typename W>
[[kernel]] void matmul_float(
    constant MatmulArgs& args              [[buffer(0)]],
    device const T* n                      [[buffer(1)]],
    device const typename W::Codes* codes  [[buffer(2)]],
    device const typename W::Scale* scales [[buffer(3)]],
    device const typename W::Scale* biases [[buffer(4)]],
    device const float* linear_bias        [[buffer(5)]],
    device float* y                        [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float memory[Tile<T>::kFloats];
  const W w(codes, scales, biases, args.n_cols, args.group_size);
  multiply_one(memory, args, w, n, group, thread_id, simd);
  for (uint i = thread_id; i < kTileSums; i += kThreads) {
    const Place place(args, group, i);
    if (!place.is_within) continue;
    float sum = memory[place.at];
    if (args.has_linear_bias[0]) sum += linear_bias[place.row];
    sum *= args.scale;
    if (args.softcap > 0) sum = args.softcap * tanh(sum / args.softcap);
    y[ulong(place.token) * args.n_rows + place.row] = sum;
  }
}

// The lower half of the tile's rows are of gate, the upper of up; without an up all are of gate.
template <typename T, typename W>
[[kernel]] void matmul_gate(
    constant MatmulArgs& args                   [[buffer(0)]],
    device const T* n                           [[buffer(1)]],
    device const typename W::Codes* gate_codes  [[buffer(2)]],
    device const typename W::Scale* gate_scales [[buffer(3)]],
    device const typename W::Scale* gate_biases [[buffer(4)]],
    device const float* gate_linear_bias        [[buffer(5)]],
    device const typename W::Codes* up_codes    [[buffer(6)]],
    device const typename W::Scale* up_scales   [[buffer(7)]],
    device const typename W::Scale* up_biases   [[buffer(8)]],
    device const float* up_linear_bias          [[buffer(9)]],
    device T* h                                 [[buffer(10)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_id [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float memory[Tile<T>::kFloats];
  const uint n_tile_rows = args.has_up ? kMatmulRows / 2 : kMatmulRows;
  const uint tile_row = thread_id / kThreadsPerRow;
  const bool is_up = tile_row >= n_tile_rows;
  const W w = is_up ? W(up_codes, up_scales, up_biases, args.n_cols, args.group_size)
                    : W(gate_codes, gate_scales, gate_biases, args.n_cols, args.group_size);
  const uint row = min(group.x * n_tile_rows + (is_up ? tile_row - n_tile_rows : tile_row), args.n_rows - 1);
  const uint token = min(group.y * kMatmulTokens + thread_id / kThreadsPerToken, args.n_tokens - 1);
  multiply(memory, Share<T, W>(w.from_row(row), n + ulong(token) * args.n_cols, args.n_cols, thread_id),
           thread_id, simd);

  for (uint i = thread_id; i < kTileSums; i += kThreads) {
    const Place place(args, group, i, n_tile_rows);
    if (!place.is_within) continue;
    float gate = memory[place.at], up = 1;
    if (args.has_linear_bias[0]) gate += gate_linear_bias[place.row];
    if (args.has_up) up = memory[place.at + n_tile_rows];
    if (args.has_up && args.has_linear_bias[1]) up += up_linear_bias[place.row];
    h[ulong(place.token) * args.n_rows + place.row] = T(activate(args.activation, gate) * up);
  }
}

#define INSTANTIATE(op, T, t, W) \
  template [[host_name(#op "_" #t "_" #W)]] [[kernel]] decltype(op<T, w_##W>) op<T, w_##W>;
#define FOR_EACH_T(op, W) \
  INSTANTIATE(op, float, f32, W) INSTANTIATE(op, half, f16, W) INSTANTIATE(op, bfloat, bf16, W)
#define MATMUL(W)                \
  FOR_EACH_T(matmul, W)          \
  FOR_EACH_T(matmul_residual, W) \
  FOR_EACH_T(matmul_gate, W)     \
  FOR_EACH_T(matmul_float, W)
MATMUL(f32)
MATMUL(f16)
MATMUL(bf16)
MATMUL(int8_f32)
MATMUL(int8_f16)
MATMUL(int8_bf16)
MATMUL(int4_f32)
MATMUL(int4_f16)
MATMUL(int4_bf16)
