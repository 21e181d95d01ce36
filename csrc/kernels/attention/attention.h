// Causal attention of query heads that share one key-value head, over the blocks of its cache.
//
//   out[t][h] = sum_j softmax_j(softcap(scale * q[t][h] . k[j])) v[j]
//
//   q, out   f32, [n_tokens][n_heads][head_dim], token after token `stride` floats on
//   keys j   token t of the call is at position pos + t and sees j <= pos + t; with a window only the last
//            `window` of them, and the first n_sinks in any case
//   table    block i holds positions kBlockTokens * i and on, as KvFormat says; a block that is kNoBlock is
//            seen by nobody
//   softcap  0: none; else c * tanh(s / c)                              (Gemma 2, arXiv 2408.00118)
//
// Softmax online over blocks (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). A query
// that sees no key at all gets zeros.
#pragma once
#include "core/variant.h"
#include "kv_cache/block_pool.h"

namespace russet {

enum { kAttentionRows = 64 };  // n_tokens * n_heads of one call, at most

struct AttentionArgs {
  const float* q;
  float* out;
  size_t stride;
  int n_tokens, n_heads, pos;
  const BlockId* table;
  const char* blocks;  // of the pool, where block 0 would be
  KvFormat format;     // keys by columns
  int window, n_sinks;
  float scale, softcap;
};
using AttentionFn = void(const AttentionArgs&);
std::span<const Variant<AttentionFn>> attention_variants();  // fastest first, "ref" last
void attention(const AttentionArgs& args);                   // the best of them on this chip

}  // namespace russet
