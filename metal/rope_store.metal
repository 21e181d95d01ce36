// rope_store_T: the heads of q, k and v of each token made ready for attention
//   q[t, h]                    = rope(rms(q[t, h]))    in place
//   cache.k[pos + t, h]        = rope(rms(k[t, h]))
//   cache.v[pos + t, h]        = v[t, h]
// with rope: x[i] = x[i] cos[i] - x[i + half] sin[i];  x[i + half] = x[i + half] cos[i] + x[i] sin[i]
// for i < half = rotary_dim / 2 (Su et al., arXiv:2104.09864); the norms, the rope or both may be absent
//
//   shapes and buffers: args.h; T in and out, float between
//   grid: a SIMD-group for each of the n_heads + 2 n_kv_heads heads of each token, its lanes along the head
//
// Bound by memory, and in decode by the launch: 2 head_dim sizeof(T) bytes and about 8 head_dim flops a head.
#include "args.h"
#include "common/cache.h"

using namespace russet::metal;

// y = rope(rms(x)) of one head; y may be x, as a lane reads what it will write and nothing else.
template <typename T>
void norm_rope(device const T* x, device T* y, bool has_norm, device const float* norm, float eps,
               device const float* cos, device const float* sin, uint rotary_dim, uint head_dim, uint lane) {
  const uint half_dim = rotary_dim / 2;
  float scale = 1;
  if (has_norm) {
    float squares = 0;
    for (uint i = lane; i < half_dim; i += kSimd) {
      const float lower = float(x[i]), upper = float(x[i + half_dim]);
      squares += lower * lower + upper * upper;
    }
    for (uint i = rotary_dim + lane; i < head_dim; i += kSimd) squares += float(x[i]) * float(x[i]);
    scale = rsqrt(simd_sum(squares) / float(head_dim) + eps);
  }
  for (uint i = lane; i < half_dim; i += kSimd) {
    const uint j = i + half_dim;
    const float lower = float(x[i]) * scale * (has_norm ? norm[i] : 1);
    const float upper = float(x[j]) * scale * (has_norm ? norm[j] : 1);
    y[i] = T(lower * cos[i] - upper * sin[i]);
    y[j] = T(upper * cos[i] + lower * sin[i]);
  }
  for (uint i = rotary_dim + lane; i < head_dim; i += kSimd)
    y[i] = T(float(x[i]) * scale * (has_norm ? norm[i] : 1));
}

template <typename T>
[[kernel]] void rope_store(
    constant RopeStoreArgs& args  [[buffer(0)]],
    device T* q                   [[buffer(1)]],
    device const T* k             [[buffer(2)]],
    device const T* v             [[buffer(3)]],
    device const float* q_norm    [[buffer(4)]],
    device const float* k_norm    [[buffer(5)]],
    device const float* cos       [[buffer(6)]],
    device const float* sin       [[buffer(7)]],
    device T* cache               [[buffer(8)]],
    device const uint* table      [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const uint head_dim = args.cache.head_dim, n_kv_heads = args.cache.n_kv_heads;
  const uint token = group.y;
  cos += ulong(token) * (args.rotary_dim / 2);
  sin += ulong(token) * (args.rotary_dim / 2);

  if (group.x < args.n_heads) {
    device T* head = q + (ulong(token) * args.n_heads + group.x) * head_dim;
    norm_rope<T>(head, head, args.has_q_norm, q_norm, args.eps, cos, sin, args.rotary_dim, head_dim, lane);
    return;
  }
  const bool is_key = group.x < args.n_heads + n_kv_heads;
  const uint kv_head = (group.x - args.n_heads) % n_kv_heads;
  const ulong from = (ulong(token) * n_kv_heads + kv_head) * head_dim;
  device T* to = cache + key_offset(args.cache, table, kv_head, args.pos + token);
  if (is_key) {
    norm_rope<T>(k + from, to, args.has_k_norm, k_norm, args.eps, cos, sin, args.rotary_dim, head_dim, lane);
  } else {
    to += value_offset(args.cache);
    for (uint i = lane; i < head_dim; i += kSimd) to[i] = v[from + i];
  }
}

template [[host_name("rope_store_f32")]]  [[kernel]] decltype(rope_store<float>)  rope_store<float>;
template [[host_name("rope_store_f16")]]  [[kernel]] decltype(rope_store<half>)   rope_store<half>;
template [[host_name("rope_store_bf16")]] [[kernel]] decltype(rope_store<bfloat>) rope_store<bfloat>;
