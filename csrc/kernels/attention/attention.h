// Causal attention of up to kAttentionRows query rows that share one key-value head.
//
//   out[i] = sum_j softmax_j(softcap(scale * q[i] . k[j])) v[j],   first_key(i) <= j <= pos[i]
//
//   q, out  n_queries rows of head_dim f32, at the given pointers (rows of several tokens and heads)
//   k, v    in blocks of kAttentionKeys keys of head_dim f32, block b at k + b * block_stride
//   pos     position of each query: it sees the keys 0..pos, or with a window only the last `window` of them
//   softcap 0: none; else c * tanh(s / c)                              (Gemma 2, arXiv 2408.00118)
//
// Softmax online over tiles of kAttentionKeys keys (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., arXiv
// 2205.14135). Tiles are counted from key 0, so a query's sums do not depend on which queries share its call:
// any chunking of a prompt gives the same bits. Decode reads 2 * head_dim * 4 bytes a key: bound by memory.
#pragma once
#include "core/variant.h"

namespace russet {

enum { kAttentionRows = 4, kAttentionKeys = 64, kMaxHeadDim = 512 };

struct AttentionArgs {
  const float* q[kAttentionRows];
  float* out[kAttentionRows];
  int pos[kAttentionRows];
  int n_queries;
  const float *k, *v;
  size_t block_stride;
  int head_dim, window;  // window 0: all keys
  float scale, softcap;
};
using AttentionFn = void(const AttentionArgs&);
std::span<const Variant<AttentionFn>> attention_variants();  // fastest first, "ref" last
void attention(const AttentionArgs& args);                   // the best of them on this chip

// Where key j lies, counted from k.
inline size_t key_offset(const AttentionArgs& a, int j) {
  return size_t(j / kAttentionKeys) * a.block_stride + size_t(j % kAttentionKeys) * size_t(a.head_dim);
}

inline int first_key(int pos, int window) {
  return window > 0 && pos >= window ? pos - window + 1 : 0;
}

}  // namespace russet
