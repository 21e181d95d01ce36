// How much query heads look at each block of the cache: what a cache that must shrink keeps blocks by.
//
//   mass[i] += sum over tokens, heads and keys j of block i of p_j^2,   p = softmax(softcap(scale * q . k))
//
// Squares let a key that one query needs count for more than many that all look at a little (KV-Compress,
// Rehg 2024, arXiv 2410.00161). Arguments as in attention.h; scratch: n_heads * n_tokens rows of as many
// floats as there are keys, rounded up to whole blocks, and a block of keys.
#pragma once
#include "kernels/attention/attention.h"

namespace russet {

struct AttentionMassArgs {
  const float* q;
  size_t stride;
  int n_tokens, n_heads, pos;
  const BlockId* table;
  const char* blocks;
  KvFormat format;
  int window, n_sinks;
  float scale, softcap;
  float* mass;
  float* scratch;
};
inline size_t attention_mass_scratch(int n_rows, int n_keys, int head_dim) {
  return size_t(n_rows) * (size_t(n_keys) + kBlockTokens) + size_t(kBlockTokens) * size_t(head_dim);
}

using AttentionMassFn = void(const AttentionMassArgs&);
std::span<const Variant<AttentionMassFn>> attention_mass_variants();  // fastest first, "ref" last
void attention_mass(const AttentionMassArgs& args);                   // the best of them on this chip

}  // namespace russet
