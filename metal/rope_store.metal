// rope_store_T_K: the heads of q, k and v of each token made ready for attention
//   q[t, h]                    = rope(rms(q[t, h]))    in place
//   cache.k[pos + t, h]        = rope(rms(k[t, h]))
//   cache.v[pos + t, h]        = v[t, h]
// with rope: x[i] = x[i] cos[i] - x[i + half] sin[i];  x[i + half] = x[i + half] cos[i] + x[i] sin[i]
// for i < half = rotary_dim / 2 (Su et al., arXiv:2104.09864); the norms, the rope or both may be absent
// The cache keeps T, or int8: code = rint(x / scale), scale = max |x| / 127 of each head of a token
//
//   shapes and buffers: args.h; T in and out, float between
//   grid: a SIMD-group for each of the n_heads + 2 n_kv_heads heads of each token, its lanes along the head
//
// Bound by memory, and in decode by the launch: 2 head_dim sizeof(T) bytes and about 8 head_dim flops a head.
#include "args.h"
#include "common/cache.h"

using namespace russet::metal;

// y = rope(rms(x)) of one head
template <typename T>
void norm_rope(device const T* x, threadgroup float* y, bool has_norm, device const float* norm, float eps,
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
    y[i] = lower * cos[i] - upper * sin[i];
    y[j] = upper * cos[i] + lower * sin[i];
  }
  for (uint i = rotary_dim + lane; i < head_dim; i += kSimd)
    y[i] = float(x[i]) * scale * (has_norm ? norm[i] : 1);
}

// x as a row of the cache.
template <typename K>
void store(threadgroup const float* x, device K* plane, uint row, uint head_dim, uint lane) {
  float scale = 1;
  if (is_int8<K>) {
    float most = 0, damage = 0;  // NaN where a number is NaN or infinite: then the scale is NaN too
    for (uint i = lane; i < head_dim; i += kSimd) {
      most = max(most, fabs(x[i]));
      damage += x[i] * 0;
    }
    scale = simd_max(most) / 127 + simd_sum(damage);
    if (lane == 0) ((device float*)(plane + kCacheBlock * head_dim))[row] = scale;
  }
  device K* to = plane + row * head_dim;
  for (uint i = lane; i < head_dim; i += kSimd) {
    if (is_int8<K>)  // where the scale is subnormal a quotient may be beyond 127
      to[i] = K(scale > 0 ? clamp(rint(x[i] / scale), -127.0f, 127.0f) : 0);
    else
      to[i] = K(x[i]);
  }
}

template <typename T, typename K>
[[kernel]] void rope_store(
    constant RopeStoreArgs& args  [[buffer(0)]],
    device T* q                   [[buffer(1)]],
    device const T* k             [[buffer(2)]],
    device const T* v             [[buffer(3)]],
    device const float* q_norm    [[buffer(4)]],
    device const float* k_norm    [[buffer(5)]],
    device const float* cos       [[buffer(6)]],
    device const float* sin       [[buffer(7)]],
    device K* cache               [[buffer(8)]],
    device const uint* table      [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float head[kMaxHeadDim];
  const uint head_dim = args.cache.head_dim, n_heads = args.n_heads, n_kv_heads = args.cache.n_kv_heads;
  const uint token = group.y, pos = args.pos + token;
  const bool is_query = group.x < n_heads, is_value = group.x >= n_heads + n_kv_heads;
  const uint kv_head = is_query ? 0 : (group.x - n_heads) % n_kv_heads;
  cos += ulong(token) * (args.rotary_dim / 2);
  sin += ulong(token) * (args.rotary_dim / 2);
  q += (ulong(token) * n_heads + group.x) * head_dim;
  const ulong from = (ulong(token) * n_kv_heads + kv_head) * head_dim;

  if (is_value)
    for (uint i = lane; i < head_dim; i += kSimd) head[i] = float(v[from + i]);
  else
    norm_rope<T>(is_query ? q : k + from, head, is_query ? args.has_q_norm : args.has_k_norm,
                 is_query ? q_norm : k_norm, args.eps, cos, sin, args.rotary_dim, head_dim, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (is_query) {
    for (uint i = lane; i < head_dim; i += kSimd) q[i] = T(head[i]);
    return;
  }
  device K* plane = cache + block_offset<K>(args.cache, block_of(args.cache, table, kv_head, pos));
  if (is_value) plane += plane_size<K>(args.cache);
  store<K>(head, plane, pos % kCacheBlock, head_dim, lane);
}

template [[host_name("rope_store_f32_f32")]]   [[kernel]] decltype(rope_store<float, float>)   rope_store<float, float>;
template [[host_name("rope_store_f32_int8")]]  [[kernel]] decltype(rope_store<float, char>)    rope_store<float, char>;
template [[host_name("rope_store_f16_f16")]]   [[kernel]] decltype(rope_store<half, half>)     rope_store<half, half>;
template [[host_name("rope_store_f16_int8")]]  [[kernel]] decltype(rope_store<half, char>)     rope_store<half, char>;
template [[host_name("rope_store_bf16_bf16")]] [[kernel]] decltype(rope_store<bfloat, bfloat>) rope_store<bfloat, bfloat>;
template [[host_name("rope_store_bf16_int8")]] [[kernel]] decltype(rope_store<bfloat, char>)   rope_store<bfloat, char>;
