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
//   scratch  64-byte aligned, kAttentionScratchFloats, the caller's; touched as far as head_dim asks for
//
// Keys are cut into runs of kRunTokens positions, counted from position 0. A kernel computes one run, online
// over its blocks (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135); runs are merged in
// order. So several threads may share the keys of one token, and a row has the same bits whoever computes
// which run and whatever else is in the call. A query that sees no key at all gets zeros.
#pragma once
#include "core/variant.h"
#include "kv_cache/block_pool.h"

namespace russet {

enum {
  kAttentionRows = 64,  // n_tokens * n_heads of one call, at most
  kRunTokens = 1024,    // whole blocks
};

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
  float* scratch;
};

// Of every row, token by token and head by head: the softmax over some of the keys, as sums that are
// relative to the largest score among them. Where a row sees none of these keys its total is 0.
struct PartialSoftmax {
  float* sums;    // [n_rows][row_floats(head_dim)] sum_j exp(s_j - top) v_j
  float* tops;    // [n_rows] max_j s_j
  float* totals;  // [n_rows] sum_j exp(s_j - top)

  static constexpr size_t row_floats(int head_dim) { return (size_t(head_dim) + 15) / 16 * 16; }
  static constexpr size_t n_floats(int n_rows, int head_dim) {  // whole cache lines
    return (size_t(n_rows) * (row_floats(head_dim) + 2) + 15) / 16 * 16;
  }
  static PartialSoftmax at(float* memory, int n_rows, int head_dim) {
    float* const tops = memory + size_t(n_rows) * row_floats(head_dim);
    return {memory, tops, tops + n_rows};
  }
};

// What a variant keeps of q, of a block and of weights: most on AMX, where a number is three of 16 bits.
constexpr size_t kAttentionKernelFloats = 216 * (size_t(kMaxHeadDim) + kBlockTokens);

// With a run's partial and the merged one.
constexpr size_t kAttentionScratchFloats =
    kAttentionKernelFloats + 2 * PartialSoftmax::n_floats(kAttentionRows, kMaxHeadDim);

// Overwrites `partial` with what the keys of one run give; leaves `out` alone.
using AttentionFn = void(const AttentionArgs&, int run, const PartialSoftmax& partial);
std::span<const Variant<AttentionFn>> attention_variants();  // fastest first, "ref" last

// Runs from 0 on that there are, and whether any token of the call sees keys of this one.
int attention_runs(const AttentionArgs& args);
bool sees_run(const AttentionArgs& args, int run);

// out, from the partials of n runs in their order, n_floats() of each
void merge_runs(const AttentionArgs& args, float* partials, int n);

// out, all runs by this thread
void attention(AttentionFn& run, const AttentionArgs& args);

}  // namespace russet
