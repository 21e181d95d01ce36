// norm_T           y[t] = norm(x[row(t)]), or x[row(t)] as it is
// norm_self_T      y[t] = rms(y[t])
// norm_residual    x[t] += scale * norm(y[t])
// with rms(x) = x * w / sqrt(mean(x^2) + eps), or the layer norm (x - mean) / sqrt(var + eps) * w + bias
//
//   shapes and buffers: args.h; x, w, bias and all sums float
//   grid: a threadgroup of kNormThreads a token, its threads side by side along the row
//
// Bound by memory: some 4 flops a number. norm_T reads a number (4 bytes) and writes one (sizeof(T)),
// norm_residual reads two and writes one (12 bytes). The sum of squares comes first, so a row is read
// twice, and of a layer norm a third time, for the mean before it: sum(x^2) - n mean^2 would lose the
// variance beside a large mean. A row is at most some 32 KB, and after the first time comes out of the
// cache.
#include "args.h"
#include "common/reduce.h"

using namespace russet::metal;

// A row normed is (x - mean) * scale.
struct Moments {
  float mean, scale;
};

enum : uint { kSimds = uint(kNormThreads) / uint(kSimd) };

template <typename X>
Moments moments(device const X* x, uint dim, bool is_layer, float eps, threadgroup float* scratch,
                uint thread_id) {
  float mean = 0;
  if (is_layer) {
    float sum = 0;
    for (uint i = thread_id; i < dim; i += kNormThreads) sum += float(x[i]);
    mean = group_sum<kNormThreads>(sum, scratch, thread_id) / float(dim);
  }
  float squares = 0;
  for (uint i = thread_id; i < dim; i += kNormThreads) {
    const float centred = float(x[i]) - mean;
    squares += centred * centred;
  }
  const float mean_square = group_sum<kNormThreads>(squares, scratch + kSimds, thread_id) / float(dim);
  return {mean, rsqrt(mean_square + eps)};
}

template <typename T>
[[kernel]] void norm(
    constant NormArgs& args   [[buffer(0)]],
    device const float* x     [[buffer(1)]],
    device const float* w     [[buffer(2)]],
    device const float* bias  [[buffer(3)]],
    device const int* rows    [[buffer(4)]],
    device T* y               [[buffer(5)]],
    uint token [[threadgroup_position_in_grid]], uint thread_id [[thread_position_in_threadgroup]]) {
  threadgroup float scratch[2 * kSimds];
  x += ulong(args.has_rows ? uint(rows[token]) : token) * args.dim;
  y += ulong(token) * args.dim;
  if (!args.has_w) {
    for (uint i = thread_id; i < args.dim; i += kNormThreads) y[i] = T(x[i]);
    return;
  }
  const Moments m = moments(x, args.dim, args.is_layer, args.eps, scratch, thread_id);
  for (uint i = thread_id; i < args.dim; i += kNormThreads)
    y[i] = T((x[i] - m.mean) * m.scale * w[i] + (args.has_bias ? bias[i] : 0));
}

template <typename T>
[[kernel]] void norm_self(
    constant NormArgs& args  [[buffer(0)]],
    device T* y              [[buffer(1)]],
    device const float* w    [[buffer(2)]],
    uint token [[threadgroup_position_in_grid]], uint thread_id [[thread_position_in_threadgroup]]) {
  threadgroup float scratch[2 * kSimds];
  y += ulong(token) * args.dim;
  const float scale = moments(y, args.dim, false, args.eps, scratch, thread_id).scale;
  for (uint i = thread_id; i < args.dim; i += kNormThreads) y[i] = T(float(y[i]) * scale * w[i]);
}

[[kernel]] void norm_residual(
    constant NormResidualArgs& args  [[buffer(0)]],
    device const float* y            [[buffer(1)]],
    device const float* w            [[buffer(2)]],
    device const float* bias         [[buffer(3)]],
    device float* x                  [[buffer(4)]],
    uint token [[threadgroup_position_in_grid]], uint thread_id [[thread_position_in_threadgroup]]) {
  threadgroup float scratch[2 * kSimds];
  y += ulong(token) * args.dim;
  x += ulong(token) * args.dim;
  const Moments m = moments(y, args.dim, args.is_layer, args.eps, scratch, thread_id);
  for (uint i = thread_id; i < args.dim; i += kNormThreads)
    x[i] += args.scale * ((y[i] - m.mean) * m.scale * w[i] + (args.has_bias ? bias[i] : 0));
}

template [[host_name("norm_f32")]]  [[kernel]] decltype(norm<float>)  norm<float>;
template [[host_name("norm_f16")]]  [[kernel]] decltype(norm<half>)   norm<half>;
template [[host_name("norm_bf16")]] [[kernel]] decltype(norm<bfloat>) norm<bfloat>;

template [[host_name("norm_self_f32")]]  [[kernel]] decltype(norm_self<float>)  norm_self<float>;
template [[host_name("norm_self_f16")]]  [[kernel]] decltype(norm_self<half>)   norm_self<half>;
template [[host_name("norm_self_bf16")]] [[kernel]] decltype(norm_self<bfloat>) norm_self<bfloat>;
