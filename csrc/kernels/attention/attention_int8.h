// attention.h with products in 8 bits: faster, and not exact. Never chosen by itself; what it costs is
// measured in tests/test_attention_int8.py and by `russet perplexity --against`.
//
//   sage      q . k in int8, p . v in float             (SageAttention, arXiv 2410.02367)
//   integer   p . v in int8 as well                     (INT-FlashAttention, arXiv 2409.16997)
//
//   q    a scale for each row, symmetric, 127 steps either way
//   k    a scale for each token: of a cache in int8 as they lie; of others less the mean of the first block
//        of a run, whose product with q is added in float
//   v    for p . v in int8: as they lie or rounded likewise, with a scale for each token; that scale times p
//        is what is rounded, in 127 steps of the largest of the row's block
//
// The softmax, its sums and what leaves a block are float.
#pragma once
#include "kernels/attention/attention.h"

namespace russet {

enum class AttentionKind : uint8_t { exact, sage, integer };

std::span<const Variant<AttentionFn>> attention_variants(AttentionKind kind);  // fastest first, "ref" last
AttentionFn& attention_of(AttentionKind kind);  // the best of them on this chip

}  // namespace russet
