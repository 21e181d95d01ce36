// What host and shaders agree on: for each kernel its arguments (always buffer 0), the order of its buffers
// from 1 on, and its grid. Included by csrc/backends/metal/ and by every .metal file, so it is plain C++ of
// both. Every field has 4 bytes.
//
// Names. T is the type of activations: f32, f16 or bf16; the residual stream x, sums and logits are always
// float. K is how the cache stores keys and values: as T, or int8. W is how a matrix [n_rows, n_cols] is
// stored: f32, f16, bf16, or int8_S, int4_S: affine groups as MLX stores them (csrc/weights/packed.h, Affine)
// with scales and biases of type S, f32, f16 or bf16. Kernels are named op_T_W, as in matvec_f16_int8_bf16. A matrix takes three buffers:
//   codes   floats, or words of codes from the lowest bits up     8-byte aligned
//   scales  [n_rows, n_cols / group_size] S, absent for floats; biases likewise
// An absent buffer must not be touched; what is absent, the arguments say.
#pragma once
#if defined(__METAL_VERSION__)
#include <metal_stdlib>
using namespace metal;
#else
#include <cstdint>
#endif

// Spelled in two, as Metal 3.1 is C++14.
namespace russet {
namespace metal {

enum : uint32_t { kSimd = 32 };  // threads of a SIMD-group

// ---- embed_W: x[t] = table[tokens[t]] * scale + positions[pos[t]], or NaN where tokens[t] is -1 ----
// buffers: table (3), positions P, tokens int32 [n_tokens], pos int32 [n_tokens], x float [n_tokens, dim]
// name: embed_W_P, P the type of positions; groups: (ceil(dim / kEmbedThreads), n_tokens)
enum : uint32_t { kEmbedThreads = 256 };
struct EmbedArgs {
  uint32_t dim, group_size, has_positions;
  float scale;
};

// ---- norm_T: y[t] = norm(x[row(t)]) ----
// rms: x * w / sqrt(mean(x^2) + eps); layer: (x - mean) / sqrt(var + eps) * w + bias; without w: x as it is
// buffers: x float [_, dim], w float [dim], bias float [dim], rows int32 [n_tokens], y T [n_tokens, dim]
// norm_self_T: y[t] = rms(y[t]), has_w; buffers: y T [n_tokens, dim], w
// groups of both: (n_tokens); threads: kNormThreads, looping over the row
enum : uint32_t { kNormThreads = 256 };
struct NormArgs {
  uint32_t dim, is_layer, has_w, has_bias, has_rows;  // without rows: row(t) = t
  float eps;
};

// ---- norm_residual: x[t] += scale * norm(y[t]), y float; arguments and norms as above ----
// buffers: y float [n_tokens, dim], w, bias, x float [n_tokens, dim]; groups: (n_tokens)
struct NormResidualArgs {
  uint32_t dim, is_layer, has_bias;
  float eps, scale;
};

// ---- products of few tokens, bound by the bytes of the weights ----
// Every product is y = W n + linear_bias with n = x, or n = rms_norm(x) fused, where has_norm.
//
// matvec_T_W: y T of up to three matrices that read the same x (q, k, v); x float
//   buffers: x float [n_tokens, n_cols], norm_w float [n_cols], then for each of the three
//            codes, scales, biases, linear_bias float [n_rows], y T [n_tokens, n_rows]
//   groups: (ceil(most rows / kMatvecRows), ceil(n_tokens / kMatvecTokens), n_matrices)
//
// matvec_residual_T_W: x[t] += scale * (W y[t] + linear_bias), y T; one matrix, no norm
//   buffers: y T, codes, scales, biases, linear_bias, x float [n_tokens, n_rows]
//
// matvec_gate_T_W: h[t] = act(gate n) * (up n), without an up act(gate n); x float, h T
//   buffers: x, norm_w, gate (codes, scales, biases, linear_bias), up (likewise), h T [n_tokens, n_rows]
//
// matvec_float_X_W: y = softcap * tanh(z / softcap), z = scale * (W n + linear_bias), or z where softcap is 0;
//   y float. The logits (X f32, with a norm and rows), and products whose norm comes after them (X T, no norm)
//   buffers: x X, norm_w, codes, scales, biases, linear_bias, rows int32 [n_tokens],
//            y float [n_tokens, n_rows]
//
// threads of all: (kSimd, kMatvecSimds); a threadgroup makes kMatvecRows rows of up to kMatvecTokens tokens.
enum : uint32_t { kMatvecSimds = 2, kMatvecRows = 16, kMatvecTokens = 4 };
struct MatvecArgs {
  uint32_t n_tokens, n_cols, group_size, has_norm, has_rows;  // rows: token t reads x[rows[t]]
  uint32_t n_rows[3], has_linear_bias[3];                     // of each matrix; gate, up: 0, 1
  uint32_t has_up, activation;                                // Activation of kernels/gate/gate.h
  float eps, scale, softcap;
};

// ---- products of many tokens, bound by arithmetic ----
// As above, with n [n_tokens, n_cols] T that norm_T has made: no fused norm, and one matrix at a time.
// matmul_T_W: y T               buffers: n, codes, scales, biases, linear_bias, y [n_tokens, n_rows]
// matmul_residual_T_W           likewise, x float += scale * (...)
// matmul_float_T_W              likewise, y float
// matmul_gate_T_W               buffers: n, gate (4), up (4), h T [n_tokens, n_rows]
// groups: (ceil(n_rows / kMatmulRows), ceil(n_tokens / kMatmulTokens)); threads: (kSimd, kMatmulSimds)
// of gate with an up: (ceil(n_rows / (kMatmulRows / 2)), ...): a threadgroup makes half as many rows of both
enum : uint32_t { kMatmulRows = 64, kMatmulTokens = 32, kMatmulSimds = 4 };
struct MatmulArgs {
  uint32_t n_tokens, n_rows, n_cols, group_size;
  uint32_t has_linear_bias[2], has_up, activation;
  float scale, softcap;
};

// ---- rope_store_T_K: norms and rotates q and k by position, and stores k and v in the cache ----
// of the tokens of one sequence. A SIMD-group a head: first n_heads of q, in place, then n_kv_heads of k, to
// the cache, then of v. Angles pair element i with i + rotary_dim / 2, and leave elements from rotary_dim on.
// buffers: q T [n_tokens, n_heads, head_dim], k T [n_tokens, n_kv_heads, head_dim], v T likewise,
//          q_norm float [head_dim], k_norm float [head_dim] (rms over each head),
//          cos float [n_tokens, rotary_dim / 2], sin likewise, cache K, table uint32
// groups: (n_heads + 2 * n_kv_heads, n_tokens); threads: kSimd
//
// The cache, as in csrc/kv_cache: `cache` is a pool of blocks, each of kCacheBlock positions of one key-value
// head of one layer: two planes, of keys and then of values, with
//   K [kCacheBlock, head_dim]
//   float [kCacheBlock], of int8 alone: a row is these times its codes, from -127 to 127
// Position p of head h is row p % kCacheBlock of the block of that number in the pool
//   table[(first_table + h) * table_size + p / kCacheBlock]
// kNoBlock: the head has not kept the position. Nothing is ever written there, so that its numbers are 0.
enum : uint32_t { kCacheBlock = 64, kNoBlock = 0, kMaxHeadDim = 256 };
struct Cache {
  uint32_t first_table;  // of this layer's heads
  uint32_t table_size;   // blocks in the table of a head
  uint32_t n_kv_heads, head_dim;
};
struct RopeStoreArgs {
  Cache cache;
  uint32_t n_heads, pos;  // pos: of the first token
  uint32_t rotary_dim;    // 0: no rope
  uint32_t has_q_norm, has_k_norm;
  float eps;
};

// ---- attention: out = softmax(scale * q . k) v over positions (p - window, p] of the cache ----
// with scores softcap * tanh(score / softcap) where softcap > 0; window 0: all positions up to p; without the
// positions of kNoBlock. Of a window's first block, and of the last, more may be read than is seen.
//
// attention_decode_T_K_D, for few queries: a threadgroup takes one token, up to kDecodeHeads query heads that
//   share a key-value head, and one part of the keys; its SIMD-groups take keys in turn. With one part it
//   writes out; with more it writes, for each, the sum of exp(score - max) v, the max, and the sum of exp.
//   buffers: q T [n_tokens, n_heads, head_dim], cache K, out T [n_tokens, n_heads, head_dim],
//            partial float [n_tokens, n_heads, n_parts, head_dim + 2], table uint32
//   groups: (n_kv_heads * ceil(n_heads / n_kv_heads / kDecodeHeads), n_tokens, n_parts)
//   threads: (kSimd, kDecodeSimds)
// attention_merge_T: buffers: partial, out; groups: (n_heads, n_tokens); threads: kSimd; n_parts <= kMaxParts
// attention_prefill_T_K_D: blocks of queries against blocks of keys with an online softmax (Milakov and
//   Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135); no matrix of scores in memory
//   buffers: q, cache, out, table
//   groups: (ceil(n_tokens / kPrefillQueries), n_heads); threads: (kSimd, kPrefillSimds)
// D is head_dim rounded up to 32, 64, 128 or 256: what registers are laid out for. head_dim: any number up to
// 32, above that a multiple of 8. q, cache and out: aligned to 4 of their numbers.
// kPrefillQueries: kPrefillSimds SIMD-groups with 16 queries each.
enum : uint32_t { kDecodeSimds = 8, kDecodeHeads = 4, kMaxParts = 32 };
enum : uint32_t { kPrefillSimds = 4, kPrefillQueries = 64 };
struct AttentionArgs {
  Cache cache;
  uint32_t n_tokens, n_heads, pos;  // pos: of the first token
  uint32_t window;
  uint32_t n_parts;  // attention_decode, attention_merge
  float scale, softcap;
};

// ---- argmax: tokens[t] = the lowest index of the largest logit; NaN anywhere: -1 ----
// argmax_parts: buffers: logits float [n_tokens, n], values float [n_tokens, kArgmaxParts],
//                        indices int32 [n_tokens, kArgmaxParts]
//   groups: (kArgmaxParts, n_tokens); threads: kArgmaxThreads
// argmax: buffers: values, indices, tokens int32 [n_tokens]; groups: (n_tokens); threads: kSimd
enum : uint32_t { kArgmaxParts = 32, kArgmaxThreads = 256 };
struct ArgmaxArgs {
  uint32_t n;
};

}  // namespace metal
}  // namespace russet
