// matvec_T_W             y[t] = W n[t] + linear_bias, for up to three W
// matvec_residual_T_W    x[t] += scale * (W y[t] + linear_bias)
// matvec_gate_T_W        h[t] = act(gate n[t]) * (up n[t]), or act(gate n[t])
// matvec_float_X_W       y[t] = softcap * tanh(z / softcap), z = scale * (W n[t] + linear_bias), or z
// with n = x or rms_norm(x), for few tokens
//
//   shapes and buffers: args.h; W in any of the ways of common/weights.h, sums float
//   grid: (ceil(n_rows / kMatvecRows), ceil(n_tokens / kMatvecTokens), n_matrices)
//   threads: (kSimd, kMatvecSimds)
//
// A SIMD-group takes kRows rows of up to kMatvecTokens tokens; its lanes take pieces of these rows in turn.
// What is loaded of x, and its sum, serves all rows that are taken at once, and what is loaded of W all
// tokens. The norm is folded in: with n = x * norm_w / rms, W n = W (x * norm_w) / rms, and the squares that
// rms needs are summed along the way.
//
// Bound by the bytes of W, each read once for kMatvecTokens tokens: a weight has 2 of f16, 1.0625 of int8,
// 0.5625 of int4 (groups of 64, f16 scales and biases). A code costs three operations (extract, convert,
// multiply-add): at the 68 GB/s of an M1 int4 takes 0.36 T of them a second, and its GPU can do 1.3 T. Of x 4
// bytes are read for each column of the rows taken at once, 8 with a norm; all SIMD-groups read the same
// ones, so they come from caches.
#include "args.h"
#include "common/activation.h"
#include "common/weights.h"

using namespace russet::metal;

enum : uint {
  kRows = uint(kMatvecRows) / uint(kMatvecSimds),  // of a SIMD-group; one token takes them all at once
  kRowsOfMany = 4,                                 // at once with several tokens: 16 sums in registers
};
static_assert(kRows * uint(kMatvecTokens) <= uint(kSimd), "each sum needs a lane that writes it");
static_assert(kRows % kRowsOfMany == 0, "several tokens take all rows");

template <typename X>
struct Input {
  device const X* x;
  device const float* norm_w;
  device const int* rows;
  uint n_tokens, n_cols;
  bool has_norm, has_rows;
  float eps;

  Input(constant MatvecArgs& args, device const X* x, device const float* norm_w, device const int* rows)
      : x(x),
        norm_w(norm_w),
        rows(rows),
        n_tokens(args.n_tokens),
        n_cols(args.n_cols),
        has_norm(args.has_norm),
        has_rows(args.has_rows),
        eps(args.eps) {}

  device const X* of_token(uint token) const {
    return x + ulong(has_rows ? uint(rows[token]) : token) * n_cols;
  }
};

// Which of its SIMD-group's sums a lane writes.
struct Place {
  uint first_row, first_token;  // of the SIMD-group
  uint row, token;              // of this lane
  uint lane;

  Place(uint3 group, uint simd, uint lane)
      : first_row((group.x * kMatvecSimds + simd) * kRows),
        first_token(group.y * kMatvecTokens),
        row(first_row + lane % kRows),
        token(first_token + lane / kRows),
        lane(lane) {}

  bool is_within(uint n_rows, uint n_tokens) const {
    return lane < kRows * kMatvecTokens && row < n_rows && token < n_tokens;
  }
};

// W n for N tokens and R rows of the SIMD-group, from its row `first` on. A lane gets the sum of its place,
// or 0 where that is of other rows. Rows and tokens past the last are read as the last.
template <uint N, uint R, typename W, typename X>
float product_of(W matrix, uint n_rows, Input<X> in, Place place, uint first) {
  const uint first_row = place.first_row + first, last = n_rows - 1 - first_row;
  const W w = matrix.from_row(first_row);
  device const X* x[N];
  for (uint t = 0; t < N; ++t) x[t] = in.of_token(min(place.first_token + t, in.n_tokens - 1));

  float sums[R][N] = {}, squares[N] = {};
  for (uint col = place.lane * W::kColumns; col < in.n_cols; col += kSimd * W::kColumns) {
    typename W::Piece pieces[R];
    for (uint r = 0; r < R; ++r) pieces[r] = w.load(min(r, last), col);

    float sum_qn[R][N] = {}, sum_n[N] = {};
    for (uint i = 0; i < W::kQuads; ++i) {
      const uint at = col + 4 * i;
      const int left = W::kRagged ? int(in.n_cols) - int(at) : 4;
      const float4 norm_w = in.has_norm ? load4(in.norm_w + at, left) : float4(1);
      float4 n[N];
      for (uint t = 0; t < N; ++t) {
        n[t] = float4(load4(x[t] + at, left));
        squares[t] += dot(n[t], n[t]);
        n[t] *= norm_w;
        sum_n[t] += dot(n[t], float4(1));
      }
      for (uint r = 0; r < R; ++r) {
        const float4 q = pieces[r].quad(i);
        for (uint t = 0; t < N; ++t) sum_qn[r][t] += dot(q, n[t]);
      }
    }
    for (uint r = 0; r < R; ++r)
      for (uint t = 0; t < N; ++t) sums[r][t] += pieces[r].total(sum_qn[r][t], sum_n[t]);
  }

  float mine = 0;
  for (uint t = 0; t < N; ++t) {
    const float factor = in.has_norm ? rsqrt(simd_sum(squares[t]) / in.n_cols + in.eps) : 1;
    for (uint r = 0; r < R; ++r) {
      const float sum = simd_sum(sums[r][t]);
      if (place.lane == t * kRows + first + r) mine = sum * factor;
    }
  }
  return mine;
}

template <typename W, typename X>
float product(W matrix, uint n_rows, Input<X> in, Place place) {
  if (in.n_tokens - place.first_token == 1) return product_of<1, kRows>(matrix, n_rows, in, place, 0);
  float mine = 0;
  for (uint first = 0; first < kRows && place.first_row + first < n_rows; first += kRowsOfMany)
    mine += product_of<kMatvecTokens, kRowsOfMany>(matrix, n_rows, in, place, first);
  return mine;
}

template <typename P>
P pick(uint i, P first, P second, P third) {
  return i == 0 ? first : i == 1 ? second : third;
}

template <typename T, typename W>
[[kernel]] void matvec(
    constant MatvecArgs& args                [[buffer(0)]],
    device const float* x                    [[buffer(1)]],
    device const float* norm_w               [[buffer(2)]],
    device const typename W::Codes* codes0   [[buffer(3)]],
    device const typename W::Scale* scales0  [[buffer(4)]],
    device const typename W::Scale* biases0  [[buffer(5)]],
    device const float* linear_bias0         [[buffer(6)]],
    device T* y0                             [[buffer(7)]],
    device const typename W::Codes* codes1   [[buffer(8)]],
    device const typename W::Scale* scales1  [[buffer(9)]],
    device const typename W::Scale* biases1  [[buffer(10)]],
    device const float* linear_bias1         [[buffer(11)]],
    device T* y1                             [[buffer(12)]],
    device const typename W::Codes* codes2   [[buffer(13)]],
    device const typename W::Scale* scales2  [[buffer(14)]],
    device const typename W::Scale* biases2  [[buffer(15)]],
    device const float* linear_bias2         [[buffer(16)]],
    device T* y2                             [[buffer(17)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Place place(group, simd, lane);
  const uint i = group.z, n_rows = args.n_rows[i];
  if (place.first_row >= n_rows) return;
  const W w(pick(i, codes0, codes1, codes2), pick(i, scales0, scales1, scales2),
            pick(i, biases0, biases1, biases2), args.n_cols, args.group_size);
  float sum = product(w, n_rows, Input<float>(args, x, norm_w, nullptr), place);
  if (!place.is_within(n_rows, args.n_tokens)) return;
  if (args.has_linear_bias[i]) sum += pick(i, linear_bias0, linear_bias1, linear_bias2)[place.row];
  pick(i, y0, y1, y2)[ulong(place.token) * n_rows + place.row] = T(sum);
}

template <typename T, typename W>
[[kernel]] void matvec_residual(
    constant MatvecArgs& args              [[buffer(0)]],
    device const T* y                      [[buffer(1)]],
    device const typename W::Codes* codes  [[buffer(2)]],
    device const typename W::Scale* scales [[buffer(3)]],
    device const typename W::Scale* biases [[buffer(4)]],
    device const float* linear_bias        [[buffer(5)]],
    device float* x                        [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Place place(group, simd, lane);
  const uint n_rows = args.n_rows[0];
  if (place.first_row >= n_rows) return;
  const W w(codes, scales, biases, args.n_cols, args.group_size);
  float sum = product(w, n_rows, Input<T>(args, y, nullptr, nullptr), place);
  if (!place.is_within(n_rows, args.n_tokens)) return;
  if (args.has_linear_bias[0]) sum += linear_bias[place.row];
  x[ulong(place.token) * n_rows + place.row] += args.scale * sum;
}

template <typename T, typename W>
[[kernel]] void matvec_gate(
    constant MatvecArgs& args                   [[buffer(0)]],
    device const float* x                       [[buffer(1)]],
    device const float* norm_w                  [[buffer(2)]],
    device const typename W::Codes* gate_codes  [[buffer(3)]],
    device const typename W::Scale* gate_scales [[buffer(4)]],
    device const typename W::Scale* gate_biases [[buffer(5)]],
    device const float* gate_linear_bias        [[buffer(6)]],
    device const typename W::Codes* up_codes    [[buffer(7)]],
    device const typename W::Scale* up_scales   [[buffer(8)]],
    device const typename W::Scale* up_biases   [[buffer(9)]],
    device const float* up_linear_bias          [[buffer(10)]],
    device T* h                                 [[buffer(11)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Place place(group, simd, lane);
  const uint n_rows = args.n_rows[0];
  if (place.first_row >= n_rows) return;
  const Input<float> in(args, x, norm_w, nullptr);
  const W gate_w(gate_codes, gate_scales, gate_biases, args.n_cols, args.group_size);
  const W up_w(up_codes, up_scales, up_biases, args.n_cols, args.group_size);
  float gate = product(gate_w, n_rows, in, place), up = 1;
  if (args.has_up) up = product(up_w, n_rows, in, place);
  if (!place.is_within(n_rows, args.n_tokens)) return;
  if (args.has_linear_bias[0]) gate += gate_linear_bias[place.row];
  if (args.has_up && args.has_linear_bias[1]) up += up_linear_bias[place.row];
  h[ulong(place.token) * n_rows + place.row] = T(activate(args.activation, gate) * up);
}

template <typename X, typename W>
[[kernel]] void matvec_float(
    constant MatvecArgs& args              [[buffer(0)]],
    device const X* x                      [[buffer(1)]],
    device const float* norm_w             [[buffer(2)]],
    device const typename W::Codes* codes  [[buffer(3)]],
    device const typename W::Scale* scales [[buffer(4)]],
    device const typename W::Scale* biases [[buffer(5)]],
    device const float* linear_bias        [[buffer(6)]],
    device const int* rows                 [[buffer(7)]],
    device float* y                        [[buffer(8)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Place place(group, simd, lane);
  const uint n_rows = args.n_rows[0];
  if (place.first_row >= n_rows) return;
  const W w(codes, scales, biases, args.n_cols, args.group_size);
  float sum = product(w, n_rows, Input<X>(args, x, norm_w, rows), place);
  if (!place.is_within(n_rows, args.n_tokens)) return;
  if (args.has_linear_bias[0]) sum += linear_bias[place.row];
  sum *= args.scale;
  if (args.softcap > 0) sum = args.softcap * tanh(sum / args.softcap);
  y[ulong(place.token) * n_rows + place.row] = sum;
}

#define INSTANTIATE(op, T, t, W) \
  template [[host_name(#op "_" #t "_" #W)]] [[kernel]] decltype(op<T, w_##W>) op<T, w_##W>;
#define FOR_EACH_T(op, W) \
  INSTANTIATE(op, float, f32, W) INSTANTIATE(op, half, f16, W) INSTANTIATE(op, bfloat, bf16, W)
#define MATVEC(W)                \
  FOR_EACH_T(matvec, W)          \
  FOR_EACH_T(matvec_residual, W) \
  FOR_EACH_T(matvec_gate, W)     \
  FOR_EACH_T(matvec_float, W)
MATVEC(f32)
MATVEC(f16)
MATVEC(bf16)
MATVEC(int8_f32)
MATVEC(int8_f16)
MATVEC(int8_bf16)
MATVEC(int4_f32)
MATVEC(int4_f16)
MATVEC(int4_bf16)
