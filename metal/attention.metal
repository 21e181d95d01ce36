// attention: out[t, h] = sum_j softmax_j(cap(scale * q[t, h] . k[j])) v[j]    over the positions j of the cache
// from max(0, p - window + 1) to p = pos + t, window 0: from 0;  cap(s) = softcap * tanh(s / softcap) or s
//
//   shapes, buffers, grids: args.h; T in and out, scores, softmax and sums float
//   D is head_dim rounded up to 32, 64, 128 or 256: what registers are laid out for. head_dim: any up to 32,
//   above that a multiple of 8
//
// All softmaxes are online (Milakov and Gimelshein, arXiv:1805.02867): what was summed under an older maximum is
// scaled by exp(older - newer). Where nothing was seen the maximum is kNoScore, which is finite, so that two such
// differ by 0 and not by NaN, and the sums are 0. A position that is not seen has the score -INFINITY: exp makes
// a 0 of it whatever the maximum.
#include "args.h"
#include "common/cache.h"

using namespace russet::metal;

constant constexpr float kNoScore = -numeric_limits<float>::max();

inline uint first_key(uint pos, uint window) { return window > 0 && pos >= window ? pos - window + 1 : 0; }

inline float capped(float score, float softcap) {
  return softcap > 0 ? softcap * tanh(score / softcap) : score;
}

// n neighbours, in the widest loads there are. `from` is aligned to min(n, 4) of them.
template <uint n, typename T>
inline void load(device const T* from, thread float* to) {
  if (n == 1) {
    to[0] = float(from[0]);
  } else if (n == 2) {
    const float2 two = float2(*(device const vec<T, 2>*)from);
    for (uint i = 0; i < 2; ++i) to[i] = two[i];
  } else {
    for (uint i = 0; i < n; i += 4) {
      const float4 four = float4(*(device const vec<T, 4>*)(from + i));
      for (uint j = 0; j < 4; ++j) to[i + j] = four[j];
    }
  }
}

// ---- few queries ----
// A SIMD-group holds up to kDecodeHeads queries in registers, D / 32 neighbouring numbers a lane, and takes
// kKeys keys at a time: 2 kKeys loads are under way at once, and the heads share each. At the end the
// SIMD-groups' sums meet in threadgroup memory, (D + 2 kDecodeHeads) kDecodeSimds floats: 8.25 KB for D = 256.
//
// Bound by memory: 2 head_dim sizeof(T) bytes a key, for 4 head_dim flops a head. Every kDecodeHeads query heads
// that share a key-value head read it once more.

enum : uint { kKeys = 4 };

template <typename T, uint D>
[[kernel]] void attention_decode(
    constant AttentionArgs& args  [[buffer(0)]],
    device const T* q             [[buffer(1)]],
    device const T* cache         [[buffer(2)]],
    device T* out                 [[buffer(3)]],
    device float* partial         [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint n = D / kSimd;  // numbers of a head in a lane
  threadgroup float maxima[kDecodeSimds][kDecodeHeads], totals[kDecodeSimds][kDecodeHeads];
  threadgroup float rows[kDecodeSimds][D];

  const uint head_dim = args.cache.head_dim, token = group.y, part = group.z;
  const uint n_sharing = args.n_heads / args.cache.n_kv_heads;  // heads of a key-value head, in n_splits groups
  const uint n_splits = (n_sharing + kDecodeHeads - 1) / kDecodeHeads;
  const uint n_each = (n_sharing + n_splits - 1) / n_splits;
  const uint kv_head = group.x / n_splits, first = group.x % n_splits * n_each;
  const uint n_heads = min(n_each, n_sharing - first);
  const ulong row = ulong(token) * args.n_heads + kv_head * n_sharing + first;  // of the first head

  // Lanes beyond the head read its first numbers again, with queries of 0.
  const bool inside = lane * n < head_dim;
  const uint at = inside ? lane * n : 0;
  float queries[kDecodeHeads][n], sums[kDecodeHeads][n], highest[kDecodeHeads], total[kDecodeHeads];
  for (uint h = 0; h < kDecodeHeads; ++h) {
    load<n>(q + (row + min(h, n_heads - 1)) * head_dim + at, queries[h]);
    for (uint i = 0; i < n; ++i) {
      queries[h][i] = inside ? queries[h][i] * args.scale : 0;
      sums[h][i] = 0;
    }
    highest[h] = kNoScore;
    total[h] = 0;
  }

  const uint pos = args.pos + token, first_seen = first_key(pos, args.window);
  const uint n_keys = pos + 1 - first_seen, n_of_part = (n_keys + args.n_parts - 1) / args.n_parts;
  const uint end = first_seen + min((part + 1) * n_of_part, n_keys);
  device const T* values = cache + value_offset(args.cache);
  for (uint key = first_seen + part * n_of_part + simd * kKeys; key < end; key += kDecodeSimds * kKeys) {
    ulong offsets[kKeys];  // keys past the end: the last one again, which is not counted
    for (uint j = 0; j < kKeys; ++j) offsets[j] = key_offset(args.cache, kv_head, min(key + j, end - 1)) + at;

    float scores[kDecodeHeads][kKeys];
#pragma unroll
    for (uint j = 0; j < kKeys; ++j) {
      float k[n];
      load<n>(cache + offsets[j], k);
      for (uint h = 0; h < kDecodeHeads; ++h) {
        if (h >= n_heads) continue;
        float dot = 0;
        for (uint i = 0; i < n; ++i) dot += queries[h][i] * k[i];
        const float score = capped(simd_sum(dot), args.softcap);
        scores[h][j] = key + j < end ? score : -INFINITY;
      }
    }
#pragma unroll
    for (uint h = 0; h < kDecodeHeads; ++h) {
      if (h >= n_heads) continue;
      float top = highest[h];
      for (uint j = 0; j < kKeys; ++j) top = max(top, scores[h][j]);
      const float rescale = exp(highest[h] - top);
      highest[h] = top;
      total[h] *= rescale;
      for (uint i = 0; i < n; ++i) sums[h][i] *= rescale;
      for (uint j = 0; j < kKeys; ++j) total[h] += scores[h][j] = exp(scores[h][j] - top);
    }
#pragma unroll
    for (uint j = 0; j < kKeys; ++j) {
      float v[n];
      load<n>(values + offsets[j], v);
      for (uint h = 0; h < kDecodeHeads; ++h) {
        if (h >= n_heads) continue;
        for (uint i = 0; i < n; ++i) sums[h][i] += scores[h][j] * v[i];
      }
    }
  }

  // The SIMD-groups' sums, on the scale of the highest score of all, are added number by number.
  if (lane == 0)
    for (uint h = 0; h < kDecodeHeads; ++h) {
      maxima[simd][h] = highest[h];
      totals[simd][h] = total[h];
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint i = simd * kSimd + lane;
#pragma unroll
  for (uint h = 0; h < kDecodeHeads; ++h) {
    if (h >= n_heads) continue;
    float top = kNoScore, all = 0, sum = 0;
    for (uint s = 0; s < kDecodeSimds; ++s) top = max(top, maxima[s][h]);
    for (uint s = 0; s < kDecodeSimds; ++s) all += totals[s][h] * exp(maxima[s][h] - top);
    const float rescale = exp(highest[h] - top);
    for (uint j = 0; j < n; ++j) rows[simd][lane * n + j] = sums[h][j] * rescale;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < head_dim) {
      for (uint s = 0; s < kDecodeSimds; ++s) sum += rows[s][i];
      if (args.n_parts == 1) {
        out[(row + h) * head_dim + i] = T(sum / all);
      } else {
        device float* to = partial + ((row + h) * args.n_parts + part) * (head_dim + 2);
        to[i] = sum;
        if (i == 0) to[head_dim] = top;
        if (i == 0) to[head_dim + 1] = all;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// The parts of a head, each at most kMaxParts lanes knows one, are added on the scale of the highest score.
// Bound by memory: 4 n_parts (head_dim + 2) bytes a head, which attention_decode has just written.
template <typename T>
[[kernel]] void attention_merge(
    constant AttentionArgs& args  [[buffer(0)]],
    device const float* partial   [[buffer(1)]],
    device T* out                 [[buffer(2)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const uint head_dim = args.cache.head_dim, n_floats = head_dim + 2;
  const ulong row = ulong(group.y) * args.n_heads + group.x;
  partial += row * args.n_parts * n_floats;
  out += row * head_dim;

  const bool has_part = lane < args.n_parts;
  const float highest = has_part ? partial[lane * n_floats + head_dim] : kNoScore;
  const float total = has_part ? partial[lane * n_floats + head_dim + 1] : 0;
  float weight = exp(highest - simd_max(highest));
  weight /= simd_sum(total * weight);
  for (uint base = 0; base < head_dim; base += kSimd) {
    const uint i = base + lane;
    float sum = 0;
    for (uint part = 0; part < args.n_parts; ++part) {
      const float weight_of_part = simd_broadcast(weight, part);
      if (i < head_dim) sum += weight_of_part * partial[part * n_floats + i];
    }
    if (i < head_dim) out[i] = T(sum);
  }
}

// ---- many queries ----
// A SIMD-group attends 8 queries to kTile keys at a time, by 8 x 8 matrices in registers: scores = Q K^T,
// weights = exp(scores - maxima), sums += weights V (Dao et al., arXiv:2205.14135). It needs no threadgroup memory
// and no barrier; the keys it shares with its neighbours come from the cache of the core. The sums of 8 queries are
// D / 4 floats a lane, 64 for D = 256; the queries are therefore loaded anew for each tile.
//
// Of an 8 x 8 matrix a lane has two neighbours of one row, as every Apple GPU so far lays them out:
//   row     lane / 16 * 4 + lane / 2 % 4
//   column  lane / 8 % 2 * 4 + lane % 2 * 2, and the next
// so the scores of a query are in four lanes, whose numbers differ in bits 0 and 3.
//
// The numbers of a head may be dealt to the matrices in any order, as long as all agree. Column c of the matrices
// run * r + j, j < run, is number (8 r + c) run + j: what a lane needs for `run` matrices is one load.
//
// Bound by arithmetic: 4 head_dim flops for a query and a key, the diagonal's tiles in full. The bytes are
// 2 head_dim sizeof(T) a key and 8 queries from the cache of the core, so 16 flops a byte of f16, and from memory a
// fourth of that at the most, as the four SIMD-groups of a threadgroup go through the same keys.

enum : uint { kTile = 32 };  // divides kCacheBlock: a tile is in one block of the cache

// The matrix of which this lane has these two elements.
inline simdgroup_float8x8 matrix_of(float left, float right) {
  simdgroup_float8x8 matrix;
  matrix.thread_elements()[0] = left;
  matrix.thread_elements()[1] = right;
  return matrix;
}

template <typename T, uint D>
[[kernel]] void attention_prefill(
    constant AttentionArgs& args  [[buffer(0)]],
    device const T* q             [[buffer(1)]],
    device const T* cache         [[buffer(2)]],
    device T* out                 [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]], uint2 n_groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint run = D == 32 ? 1 : 4, n_runs = D / 8 / run;
  const uint row = lane / 16 * 4 + lane / 2 % 4, col = lane / 8 % 2 * 4 + lane % 2 * 2;
  const uint head_dim = args.cache.head_dim, head = group.y;
  const uint kv_head = head / (args.n_heads / args.cache.n_kv_heads);

  // The last queries see the most keys and begin first, so that no core is left alone with them.
  const uint first = ((n_groups.x - 1 - group.x) * kPrefillSimds + simd) * 8;
  if (first >= args.n_tokens) return;
  const uint last = min(first + 7, args.n_tokens - 1);
  const uint token = min(first + row, last), pos = args.pos + token, first_seen = first_key(pos, args.window);
  q += (ulong(token) * args.n_heads + head) * head_dim;
  out += (ulong(token) * args.n_heads + head) * head_dim;

  simdgroup_float8x8 sums[D / 8];
#pragma unroll
  for (uint i = 0; i < D / 8; ++i) sums[i] = matrix_of(0, 0);
  float highest = kNoScore, total = 0;  // of the lane's row; the total of the lane's columns

  const uint end = args.pos + last + 1;
  for (uint key = first_key(args.pos + first, args.window) / kTile * kTile; key < end; key += kTile) {
    device const T* k = cache + key_offset(args.cache, kv_head, key);
    device const T* v = k + value_offset(args.cache);
    const uint last_row = end - 1 - key;  // read in place of those after it, which may hold anything, NaN too

    simdgroup_float8x8 scores[kTile / 8];
#pragma unroll
    for (uint f = 0; f < kTile / 8; ++f) scores[f] = matrix_of(0, 0);
#pragma unroll
    for (uint r = 0; r < n_runs; ++r) {
      if (8 * r * run >= head_dim) continue;
      const uint q_at = (8 * r + col) * run, k_at = min((8 * r + row) * run, head_dim - run);
      float q_left[run], q_right[run];
      load<run>(q + min(q_at, head_dim - run), q_left);
      load<run>(q + min(q_at + run, head_dim - run), q_right);
      for (uint j = 0; j < run; ++j) {
        q_left[j] = q_at < head_dim ? q_left[j] : 0;
        q_right[j] = q_at + run < head_dim ? q_right[j] : 0;
      }
#pragma unroll
      for (uint f = 0; f < kTile / 8; ++f) {
        float k_left[run], k_right[run];
        load<run>(k + min(8 * f + col, last_row) * head_dim + k_at, k_left);
        load<run>(k + min(8 * f + col + 1, last_row) * head_dim + k_at, k_right);
        for (uint j = 0; j < run; ++j)
          simdgroup_multiply_accumulate(scores[f], matrix_of(q_left[j], q_right[j]),
                                        matrix_of(k_left[j], k_right[j]), scores[f]);
      }
    }

    float top = highest;
#pragma unroll
    for (uint f = 0; f < kTile / 8; ++f)
      for (uint e = 0; e < 2; ++e) {
        const uint key_pos = key + 8 * f + col + e;
        const float score = capped(scores[f].thread_elements()[e] * args.scale, args.softcap);
        const float seen = first_seen <= key_pos && key_pos <= pos ? score : -INFINITY;
        scores[f].thread_elements()[e] = seen;
        top = max(top, seen);
      }
    top = max(top, simd_shuffle_xor(top, 1));
    top = max(top, simd_shuffle_xor(top, 8));
    const float rescale = exp(highest - top);
    highest = top;
    total *= rescale;
#pragma unroll
    for (uint f = 0; f < kTile / 8; ++f)
      for (uint e = 0; e < 2; ++e) {
        const float weight = exp(scores[f].thread_elements()[e] - top);
        scores[f].thread_elements()[e] = weight;
        total += weight;
      }

#pragma unroll
    for (uint r = 0; r < n_runs; ++r) {
      if (8 * r * run >= head_dim) continue;
      for (uint j = 0; j < run; ++j)
        for (uint e = 0; e < 2; ++e) sums[r * run + j].thread_elements()[e] *= rescale;
      const uint left_at = min((8 * r + col) * run, head_dim - run), right_at = min(left_at + run, head_dim - run);
#pragma unroll
      for (uint f = 0; f < kTile / 8; ++f) {
        device const T* v_row = v + min(8 * f + row, last_row) * head_dim;
        float v_left[run], v_right[run];
        load<run>(v_row + left_at, v_left);
        load<run>(v_row + right_at, v_right);
        for (uint j = 0; j < run; ++j)
          simdgroup_multiply_accumulate(sums[r * run + j], scores[f], matrix_of(v_left[j], v_right[j]),
                                        sums[r * run + j]);
      }
    }
  }

  total += simd_shuffle_xor(total, 1);
  total += simd_shuffle_xor(total, 8);
  if (first + row > last) return;
#pragma unroll
  for (uint r = 0; r < n_runs; ++r)
    for (uint e = 0; e < 2; ++e) {
      const uint at = (8 * r + col + e) * run;
      if (at >= head_dim) continue;
      for (uint j = 0; j < run; ++j) out[at + j] = T(sums[r * run + j].thread_elements()[e] / total);
    }
}

template [[host_name("attention_decode_f32_32")]]   [[kernel]] decltype(attention_decode<float, 32>)   attention_decode<float, 32>;
template [[host_name("attention_decode_f32_64")]]   [[kernel]] decltype(attention_decode<float, 64>)   attention_decode<float, 64>;
template [[host_name("attention_decode_f32_128")]]  [[kernel]] decltype(attention_decode<float, 128>)  attention_decode<float, 128>;
template [[host_name("attention_decode_f32_256")]]  [[kernel]] decltype(attention_decode<float, 256>)  attention_decode<float, 256>;
template [[host_name("attention_decode_f16_32")]]   [[kernel]] decltype(attention_decode<half, 32>)    attention_decode<half, 32>;
template [[host_name("attention_decode_f16_64")]]   [[kernel]] decltype(attention_decode<half, 64>)    attention_decode<half, 64>;
template [[host_name("attention_decode_f16_128")]]  [[kernel]] decltype(attention_decode<half, 128>)   attention_decode<half, 128>;
template [[host_name("attention_decode_f16_256")]]  [[kernel]] decltype(attention_decode<half, 256>)   attention_decode<half, 256>;
template [[host_name("attention_decode_bf16_32")]]  [[kernel]] decltype(attention_decode<bfloat, 32>)  attention_decode<bfloat, 32>;
template [[host_name("attention_decode_bf16_64")]]  [[kernel]] decltype(attention_decode<bfloat, 64>)  attention_decode<bfloat, 64>;
template [[host_name("attention_decode_bf16_128")]] [[kernel]] decltype(attention_decode<bfloat, 128>) attention_decode<bfloat, 128>;
template [[host_name("attention_decode_bf16_256")]] [[kernel]] decltype(attention_decode<bfloat, 256>) attention_decode<bfloat, 256>;

template [[host_name("attention_merge_f32")]]  [[kernel]] decltype(attention_merge<float>)  attention_merge<float>;
template [[host_name("attention_merge_f16")]]  [[kernel]] decltype(attention_merge<half>)   attention_merge<half>;
template [[host_name("attention_merge_bf16")]] [[kernel]] decltype(attention_merge<bfloat>) attention_merge<bfloat>;

template [[host_name("attention_prefill_f32_32")]]   [[kernel]] decltype(attention_prefill<float, 32>)   attention_prefill<float, 32>;
template [[host_name("attention_prefill_f32_64")]]   [[kernel]] decltype(attention_prefill<float, 64>)   attention_prefill<float, 64>;
template [[host_name("attention_prefill_f32_128")]]  [[kernel]] decltype(attention_prefill<float, 128>)  attention_prefill<float, 128>;
template [[host_name("attention_prefill_f32_256")]]  [[kernel]] decltype(attention_prefill<float, 256>)  attention_prefill<float, 256>;
template [[host_name("attention_prefill_f16_32")]]   [[kernel]] decltype(attention_prefill<half, 32>)    attention_prefill<half, 32>;
template [[host_name("attention_prefill_f16_64")]]   [[kernel]] decltype(attention_prefill<half, 64>)    attention_prefill<half, 64>;
template [[host_name("attention_prefill_f16_128")]]  [[kernel]] decltype(attention_prefill<half, 128>)   attention_prefill<half, 128>;
template [[host_name("attention_prefill_f16_256")]]  [[kernel]] decltype(attention_prefill<half, 256>)   attention_prefill<half, 256>;
template [[host_name("attention_prefill_bf16_32")]]  [[kernel]] decltype(attention_prefill<bfloat, 32>)  attention_prefill<bfloat, 32>;
template [[host_name("attention_prefill_bf16_64")]]  [[kernel]] decltype(attention_prefill<bfloat, 64>)  attention_prefill<bfloat, 64>;
template [[host_name("attention_prefill_bf16_128")]] [[kernel]] decltype(attention_prefill<bfloat, 128>) attention_prefill<bfloat, 128>;
template [[host_name("attention_prefill_bf16_256")]] [[kernel]] decltype(attention_prefill<bfloat, 256>) attention_prefill<bfloat, 256>;
