// attention: out[t, h] = sum_j softmax_j(cap(scale * q[t, h] . k[j])) v[j]
// over the positions j of the cache from max(0, p - window + 1), or 0 where window is 0, to p = pos + t;
// cap(s) = softcap * tanh(s / softcap), or s where softcap is 0
//
//   shapes, buffers, grids: args.h; q, out T; k, v K, T or int8; scores, softmax and sums float
//   D is head_dim rounded up to 32, 64, 128 or 256: what registers are laid out for
//
// A block that the table does not name is seen by nobody. Of int8 the codes are multiplied: a key's scale
// then goes to its score, and a value's to its weight.
//
// All softmaxes are online (Milakov and Gimelshein, arXiv:1805.02867): what was summed below an older
// maximum is scaled by exp(older - newer). Where nothing has been seen the maximum is kNoScore, which is
// finite, so that two of them differ by 0 and not by NaN. A position that must not be seen has the score
// -INFINITY, of which exp makes 0 whatever the maximum.
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
// A SIMD-group holds up to kDecodeHeads queries in registers, D / 32 neighbouring numbers in a lane, and
// takes kKeys keys at a time, so that their loads are under way together. At the end the sums of the SIMD-
// groups meet in threadgroup memory, kDecodeSimds (D + 2 kDecodeHeads) floats: 8,448 bytes for D = 256.
//
// Bound by memory: 2 head_dim sizeof(K) bytes of cache a key (and 8 of int8), for 4 head_dim flops a head: 1
// to 4 flops a byte of f16. Where more than kDecodeHeads query heads share a key-value head, each further group of them
// reads it again. A part writes 4 (head_dim + 2) bytes a head, which attention_merge reads: of 128 keys
// 1.6%.

enum : uint { kKeys = 4 };

template <typename T, typename K, uint D>
[[kernel]] void attention_decode(
    constant AttentionArgs& args  [[buffer(0)]],
    device const T* q             [[buffer(1)]],
    device const K* cache         [[buffer(2)]],
    device T* out                 [[buffer(3)]],
    device float* partial         [[buffer(4)]],
    device const uint* table      [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint n = D / kSimd;  // numbers of a head in a lane
  threadgroup float maxima[kDecodeSimds][kDecodeHeads], totals[kDecodeSimds][kDecodeHeads];
  threadgroup float partial_sums[kDecodeSimds][D];

  const uint head_dim = args.cache.head_dim, token = group.y, part = group.z;
  const uint n_sharing = args.n_heads / args.cache.n_kv_heads;  // heads of a key-value head, in n_splits
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
    highest[h] = kNoScore;
    total[h] = 0;
    for (uint i = 0; i < n; ++i) sums[h][i] = 0;
    if (h >= n_heads) continue;
    load<n>(q + (row + h) * head_dim + at, queries[h]);
    for (uint i = 0; i < n; ++i) queries[h][i] = inside ? queries[h][i] * args.scale : 0;
  }

  const uint pos = args.pos + token, first_seen = first_key(pos, args.window);
  const uint n_keys = pos + 1 - first_seen, n_of_part = (n_keys + args.n_parts - 1) / args.n_parts;
  const uint end = first_seen + min((part + 1) * n_of_part, n_keys);
  for (uint key = first_seen + part * n_of_part + simd * kKeys; key < end; key += kDecodeSimds * kKeys) {
    device const K* planes[kKeys];  // keys past the end: the last one again, which is not counted
    uint rows[kKeys];
    bool seen[kKeys];
    for (uint j = 0; j < kKeys; ++j) {
      const uint at_pos = min(key + j, end - 1), block = block_of(args.cache, table, kv_head, at_pos);
      planes[j] = cache + block_offset<K>(args.cache, block);
      rows[j] = at_pos % kCacheBlock;
      seen[j] = key + j < end && block != kNoBlock;
    }

    float scores[kDecodeHeads][kKeys];
#pragma unroll
    for (uint j = 0; j < kKeys; ++j) {
      float k[n];
      load<n>(planes[j] + rows[j] * head_dim + at, k);
      const float k_scale = scale_of(args.cache, planes[j], rows[j]);
      for (uint h = 0; h < kDecodeHeads; ++h) {
        if (h >= n_heads) continue;
        float dot = 0;
        for (uint i = 0; i < n; ++i) dot += queries[h][i] * k[i];
        const float score = capped(simd_sum(dot) * k_scale, args.softcap);
        scores[h][j] = seen[j] ? score : -INFINITY;
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
      device const K* values = planes[j] + plane_size<K>(args.cache);
      load<n>(values + rows[j] * head_dim + at, v);
      const float v_scale = scale_of(args.cache, values, rows[j]);
      for (uint h = 0; h < kDecodeHeads; ++h) {
        if (h >= n_heads) continue;
        const float weight = scores[h][j] * v_scale;
        for (uint i = 0; i < n; ++i) sums[h][i] += weight * v[i];
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
    for (uint j = 0; j < n; ++j) partial_sums[simd][lane * n + j] = sums[h][j] * rescale;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < head_dim) {
      for (uint s = 0; s < kDecodeSimds; ++s) sum += partial_sums[s][i];
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

// Adds up the parts of a head, on the scale of the highest score of all. Lane i knows the weight of part i.
// Bound by the launch: 4 n_parts (head_dim + 2) bytes a head, just written.
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
// A SIMD-group attends 16 queries to kTile keys at a time, by 8 x 8 matrices in registers: scores = Q K^T,
// weights = exp(scores - maxima), sums += weights V (Dao et al., arXiv:2205.14135). It needs no threadgroup
// memory and no barrier. The sums of 8 queries take D / 4 registers of the 128 that a thread can have: two
// blocks of 8 queries share the keys they load up to D = 128, and come one after the other for D = 256. The
// queries themselves are loaded anew for each tile.
//
// Of an 8 x 8 matrix a lane has two neighbours in a row, as every Apple GPU so far lays it out:
//   row     lane / 16 * 4 + lane / 2 % 4
//   column  lane / 8 % 2 * 4 + lane % 2 * 2, and the next
// so a row is in four lanes, whose numbers differ in bits 0 and 3.
//
// The numbers of a head may be dealt to matrices in any order, as long as q and k agree, v and out. Column
// c of the matrices run * r + j, j < run, is number (8 r + c) run + j: what a lane needs for `run` matrices
// lies side by side in memory, and is one load.
//
// Bound by arithmetic: 4 head_dim flops for a query and a key, tiles on the diagonal in full. A key's
// 2 head_dim sizeof(T) bytes serve 16 queries, 16 flops a byte of f16, mostly out of the core's cache: the
// SIMD-groups of a threadgroup go through the same keys.

enum : uint { kTile = 16 };  // divides kCacheBlock: a tile is in one block of the cache

// The matrix of which this lane has these two elements.
inline simdgroup_float8x8 matrix_of(float left, float right) {
  simdgroup_float8x8 matrix;
  matrix.thread_elements()[0] = left;
  matrix.thread_elements()[1] = right;
  return matrix;
}

// A row's maximum, or sum, for the four lanes that have it.
inline float row_max(float value) {
  value = max(value, simd_shuffle_xor(value, 1));
  return max(value, simd_shuffle_xor(value, 8));
}
inline float row_sum(float value) {
  value += simd_shuffle_xor(value, 1);
  return value + simd_shuffle_xor(value, 8);
}

// The queries from `first` on, in n_blocks of 8.
template <uint n_blocks, uint D, typename T, typename K>
void attend(constant AttentionArgs& args, device const T* q, device const K* cache, device T* out,
            device const uint* table, uint head, uint first, uint lane) {
  constexpr uint run = D == 32 ? 1 : 4, n_runs = D / 8 / run, n_keys = kTile / 8;
  const uint row = lane / 16 * 4 + lane / 2 % 4, col = lane / 8 % 2 * 4 + lane % 2 * 2;
  const uint head_dim = args.cache.head_dim, kv_head = head / (args.n_heads / args.cache.n_kv_heads);
  if (first >= args.n_tokens) return;
  const uint last = min(first + 8 * n_blocks, args.n_tokens) - 1;

  uint pos[n_blocks], first_seen[n_blocks];
  ulong at[n_blocks];  // of the lane's queries in q, and in out; those past the last are the last again
  float highest[n_blocks], total[n_blocks];  // of the lane's rows; the totals of its columns alone
  simdgroup_float8x8 sums[n_blocks][D / 8];
#pragma unroll
  for (uint b = 0; b < n_blocks; ++b) {
    const uint token = min(first + 8 * b + row, last);
    pos[b] = args.pos + token;
    first_seen[b] = first_key(pos[b], args.window);
    at[b] = (ulong(token) * args.n_heads + head) * head_dim;
    highest[b] = kNoScore;
    total[b] = 0;
#pragma unroll
    for (uint i = 0; i < D / 8; ++i) sums[b][i] = matrix_of(0, 0);
  }

  const uint end = args.pos + last + 1;
  for (uint key = first_key(args.pos + first, args.window) / kTile * kTile; key < end; key += kTile) {
    const uint block = block_of(args.cache, table, kv_head, key);
    if (block == kNoBlock) continue;
    device const K* key_plane = cache + block_offset<K>(args.cache, block);
    device const K* value_plane = key_plane + plane_size<K>(args.cache);
    const uint first_row = key % kCacheBlock, last_row = first_row + min(end - key, uint(kTile)) - 1;

    // scores = Q K^T
    simdgroup_float8x8 scores[n_blocks][n_keys];
#pragma unroll
    for (uint b = 0; b < n_blocks; ++b)
      for (uint f = 0; f < n_keys; ++f) scores[b][f] = matrix_of(0, 0);
#pragma unroll
    for (uint r = 0; r < n_runs; ++r) {
      if (8 * r * run >= head_dim) continue;
      float k_left[n_keys][run], k_right[n_keys][run];
#pragma unroll
      for (uint f = 0; f < n_keys; ++f) {
        device const K* k_run = key_plane + min((8 * r + row) * run, head_dim - run);
        load<run>(k_run + (first_row + 8 * f + col) * head_dim, k_left[f]);
        load<run>(k_run + (first_row + 8 * f + col + 1) * head_dim, k_right[f]);
      }
#pragma unroll
      for (uint b = 0; b < n_blocks; ++b) {
        const uint left = (8 * r + col) * run, right = left + run;
        float q_left[run], q_right[run];
        load<run>(q + at[b] + min(left, head_dim - run), q_left);
        load<run>(q + at[b] + min(right, head_dim - run), q_right);
        for (uint j = 0; j < run; ++j) {
          const auto queries = matrix_of(left < head_dim ? q_left[j] : 0, right < head_dim ? q_right[j] : 0);
          for (uint f = 0; f < n_keys; ++f)
            simdgroup_multiply_accumulate(scores[b][f], queries, matrix_of(k_left[f][j], k_right[f][j]),
                                          scores[b][f]);
        }
      }
    }

    // scores become weights, exp(cap(scale * scores) - highest); whatever it was, a key not seen weighs 0
#pragma unroll
    for (uint b = 0; b < n_blocks; ++b) {
      float top = highest[b];
      for (uint f = 0; f < n_keys; ++f)
        for (uint e = 0; e < 2; ++e) {
          const uint key_pos = key + 8 * f + col + e;
          const float k_scale = scale_of(args.cache, key_plane, first_row + 8 * f + col + e);
          const float score = capped(scores[b][f].thread_elements()[e] * k_scale * args.scale, args.softcap);
          const float seen = first_seen[b] <= key_pos && key_pos <= pos[b] ? score : -INFINITY;
          scores[b][f].thread_elements()[e] = seen;
          top = max(top, seen);
        }
      top = row_max(top);
      const float rescale = exp(highest[b] - top);
      highest[b] = top;
      total[b] *= rescale;
      for (uint f = 0; f < n_keys; ++f)
        for (uint e = 0; e < 2; ++e) {
          const float weight = exp(scores[b][f].thread_elements()[e] - top);
          const uint v_row = min(first_row + 8 * f + col + e, last_row);
          scores[b][f].thread_elements()[e] = weight * scale_of(args.cache, value_plane, v_row);
          total[b] += weight;
        }
#pragma unroll
      for (uint i = 0; i < D / 8; ++i)
        for (uint e = 0; e < 2; ++e) sums[b][i].thread_elements()[e] *= rescale;
    }

    // sums += weights V; a weight of 0 does not undo a NaN in the rows after the last, which is read for them
#pragma unroll
    for (uint r = 0; r < n_runs; ++r) {
      if (8 * r * run >= head_dim) continue;
      const uint left = min((8 * r + col) * run, head_dim - run), right = min(left + run, head_dim - run);
#pragma unroll
      for (uint f = 0; f < n_keys; ++f) {
        device const K* v_row = value_plane + min(first_row + 8 * f + row, last_row) * head_dim;
        float v_left[run], v_right[run];
        load<run>(v_row + left, v_left);
        load<run>(v_row + right, v_right);
        for (uint j = 0; j < run; ++j) {
          const auto values = matrix_of(v_left[j], v_right[j]);
          for (uint b = 0; b < n_blocks; ++b)
            simdgroup_multiply_accumulate(sums[b][r * run + j], scores[b][f], values, sums[b][r * run + j]);
        }
      }
    }
  }

#pragma unroll
  for (uint b = 0; b < n_blocks; ++b) {
    const float of_row = row_sum(total[b]);
    const uint n_numbers = first + 8 * b + row <= last ? head_dim : 0;
#pragma unroll
    for (uint r = 0; r < n_runs; ++r)
      for (uint e = 0; e < 2; ++e) {
        const uint i = (8 * r + col + e) * run;
        for (uint j = 0; j < run && i < n_numbers; ++j)
          out[at[b] + i + j] = T(sums[b][r * run + j].thread_elements()[e] / of_row);
      }
  }
}

template <typename T, typename K, uint D>
[[kernel]] void attention_prefill(
    constant AttentionArgs& args  [[buffer(0)]],
    device const T* q             [[buffer(1)]],
    device const K* cache         [[buffer(2)]],
    device T* out                 [[buffer(3)]],
    device const uint* table      [[buffer(4)]],
    uint2 group [[threadgroup_position_in_grid]], uint2 n_groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]]) {
  // The last queries see the most keys and begin first, so that no core is left alone with them.
  const uint first = (n_groups.x - 1 - group.x) * kPrefillQueries + simd * 16;
  constexpr uint n_blocks = D <= 128 ? 2 : 1;
  for (uint b = 0; b < 2; b += n_blocks)
    attend<n_blocks, D>(args, q, cache, out, table, group.y, first + 8 * b, lane);
}

template [[host_name("attention_decode_f32_f32_32")]]    [[kernel]] decltype(attention_decode<float, float, 32>)    attention_decode<float, float, 32>;
template [[host_name("attention_decode_f32_f32_64")]]    [[kernel]] decltype(attention_decode<float, float, 64>)    attention_decode<float, float, 64>;
template [[host_name("attention_decode_f32_f32_128")]]   [[kernel]] decltype(attention_decode<float, float, 128>)   attention_decode<float, float, 128>;
template [[host_name("attention_decode_f32_f32_256")]]   [[kernel]] decltype(attention_decode<float, float, 256>)   attention_decode<float, float, 256>;
template [[host_name("attention_decode_f32_int8_32")]]   [[kernel]] decltype(attention_decode<float, char, 32>)     attention_decode<float, char, 32>;
template [[host_name("attention_decode_f32_int8_64")]]   [[kernel]] decltype(attention_decode<float, char, 64>)     attention_decode<float, char, 64>;
template [[host_name("attention_decode_f32_int8_128")]]  [[kernel]] decltype(attention_decode<float, char, 128>)    attention_decode<float, char, 128>;
template [[host_name("attention_decode_f32_int8_256")]]  [[kernel]] decltype(attention_decode<float, char, 256>)    attention_decode<float, char, 256>;
template [[host_name("attention_decode_f16_f16_32")]]    [[kernel]] decltype(attention_decode<half, half, 32>)      attention_decode<half, half, 32>;
template [[host_name("attention_decode_f16_f16_64")]]    [[kernel]] decltype(attention_decode<half, half, 64>)      attention_decode<half, half, 64>;
template [[host_name("attention_decode_f16_f16_128")]]   [[kernel]] decltype(attention_decode<half, half, 128>)     attention_decode<half, half, 128>;
template [[host_name("attention_decode_f16_f16_256")]]   [[kernel]] decltype(attention_decode<half, half, 256>)     attention_decode<half, half, 256>;
template [[host_name("attention_decode_f16_int8_32")]]   [[kernel]] decltype(attention_decode<half, char, 32>)      attention_decode<half, char, 32>;
template [[host_name("attention_decode_f16_int8_64")]]   [[kernel]] decltype(attention_decode<half, char, 64>)      attention_decode<half, char, 64>;
template [[host_name("attention_decode_f16_int8_128")]]  [[kernel]] decltype(attention_decode<half, char, 128>)     attention_decode<half, char, 128>;
template [[host_name("attention_decode_f16_int8_256")]]  [[kernel]] decltype(attention_decode<half, char, 256>)     attention_decode<half, char, 256>;
template [[host_name("attention_decode_bf16_bf16_32")]]  [[kernel]] decltype(attention_decode<bfloat, bfloat, 32>)  attention_decode<bfloat, bfloat, 32>;
template [[host_name("attention_decode_bf16_bf16_64")]]  [[kernel]] decltype(attention_decode<bfloat, bfloat, 64>)  attention_decode<bfloat, bfloat, 64>;
template [[host_name("attention_decode_bf16_bf16_128")]] [[kernel]] decltype(attention_decode<bfloat, bfloat, 128>) attention_decode<bfloat, bfloat, 128>;
template [[host_name("attention_decode_bf16_bf16_256")]] [[kernel]] decltype(attention_decode<bfloat, bfloat, 256>) attention_decode<bfloat, bfloat, 256>;
template [[host_name("attention_decode_bf16_int8_32")]]  [[kernel]] decltype(attention_decode<bfloat, char, 32>)    attention_decode<bfloat, char, 32>;
template [[host_name("attention_decode_bf16_int8_64")]]  [[kernel]] decltype(attention_decode<bfloat, char, 64>)    attention_decode<bfloat, char, 64>;
template [[host_name("attention_decode_bf16_int8_128")]] [[kernel]] decltype(attention_decode<bfloat, char, 128>)   attention_decode<bfloat, char, 128>;
template [[host_name("attention_decode_bf16_int8_256")]] [[kernel]] decltype(attention_decode<bfloat, char, 256>)   attention_decode<bfloat, char, 256>;

template [[host_name("attention_merge_f32")]]  [[kernel]] decltype(attention_merge<float>)  attention_merge<float>;
template [[host_name("attention_merge_f16")]]  [[kernel]] decltype(attention_merge<half>)   attention_merge<half>;
template [[host_name("attention_merge_bf16")]] [[kernel]] decltype(attention_merge<bfloat>) attention_merge<bfloat>;

template [[host_name("attention_prefill_f32_f32_32")]]    [[kernel]] decltype(attention_prefill<float, float, 32>)    attention_prefill<float, float, 32>;
template [[host_name("attention_prefill_f32_f32_64")]]    [[kernel]] decltype(attention_prefill<float, float, 64>)    attention_prefill<float, float, 64>;
template [[host_name("attention_prefill_f32_f32_128")]]   [[kernel]] decltype(attention_prefill<float, float, 128>)   attention_prefill<float, float, 128>;
template [[host_name("attention_prefill_f32_f32_256")]]   [[kernel]] decltype(attention_prefill<float, float, 256>)   attention_prefill<float, float, 256>;
template [[host_name("attention_prefill_f32_int8_32")]]   [[kernel]] decltype(attention_prefill<float, char, 32>)     attention_prefill<float, char, 32>;
template [[host_name("attention_prefill_f32_int8_64")]]   [[kernel]] decltype(attention_prefill<float, char, 64>)     attention_prefill<float, char, 64>;
template [[host_name("attention_prefill_f32_int8_128")]]  [[kernel]] decltype(attention_prefill<float, char, 128>)    attention_prefill<float, char, 128>;
template [[host_name("attention_prefill_f32_int8_256")]]  [[kernel]] decltype(attention_prefill<float, char, 256>)    attention_prefill<float, char, 256>;
template [[host_name("attention_prefill_f16_f16_32")]]    [[kernel]] decltype(attention_prefill<half, half, 32>)      attention_prefill<half, half, 32>;
template [[host_name("attention_prefill_f16_f16_64")]]    [[kernel]] decltype(attention_prefill<half, half, 64>)      attention_prefill<half, half, 64>;
template [[host_name("attention_prefill_f16_f16_128")]]   [[kernel]] decltype(attention_prefill<half, half, 128>)     attention_prefill<half, half, 128>;
template [[host_name("attention_prefill_f16_f16_256")]]   [[kernel]] decltype(attention_prefill<half, half, 256>)     attention_prefill<half, half, 256>;
template [[host_name("attention_prefill_f16_int8_32")]]   [[kernel]] decltype(attention_prefill<half, char, 32>)      attention_prefill<half, char, 32>;
template [[host_name("attention_prefill_f16_int8_64")]]   [[kernel]] decltype(attention_prefill<half, char, 64>)      attention_prefill<half, char, 64>;
template [[host_name("attention_prefill_f16_int8_128")]]  [[kernel]] decltype(attention_prefill<half, char, 128>)     attention_prefill<half, char, 128>;
template [[host_name("attention_prefill_f16_int8_256")]]  [[kernel]] decltype(attention_prefill<half, char, 256>)     attention_prefill<half, char, 256>;
template [[host_name("attention_prefill_bf16_bf16_32")]]  [[kernel]] decltype(attention_prefill<bfloat, bfloat, 32>)  attention_prefill<bfloat, bfloat, 32>;
template [[host_name("attention_prefill_bf16_bf16_64")]]  [[kernel]] decltype(attention_prefill<bfloat, bfloat, 64>)  attention_prefill<bfloat, bfloat, 64>;
template [[host_name("attention_prefill_bf16_bf16_128")]] [[kernel]] decltype(attention_prefill<bfloat, bfloat, 128>) attention_prefill<bfloat, bfloat, 128>;
template [[host_name("attention_prefill_bf16_bf16_256")]] [[kernel]] decltype(attention_prefill<bfloat, bfloat, 256>) attention_prefill<bfloat, bfloat, 256>;
template [[host_name("attention_prefill_bf16_int8_32")]]  [[kernel]] decltype(attention_prefill<bfloat, char, 32>)    attention_prefill<bfloat, char, 32>;
template [[host_name("attention_prefill_bf16_int8_64")]]  [[kernel]] decltype(attention_prefill<bfloat, char, 64>)    attention_prefill<bfloat, char, 64>;
template [[host_name("attention_prefill_bf16_int8_128")]] [[kernel]] decltype(attention_prefill<bfloat, char, 128>)   attention_prefill<bfloat, char, 128>;
template [[host_name("attention_prefill_bf16_int8_256")]] [[kernel]] decltype(attention_prefill<bfloat, char, 256>)   attention_prefill<bfloat, char, 256>;
