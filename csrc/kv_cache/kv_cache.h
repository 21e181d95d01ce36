// KvCache: the keys and values of one sequence, in blocks of a pool.
//
// Every key-value head of every layer has a table of blocks: block i holds kBlockTokens positions, kNoBlock
// what is not kept. A fork shares blocks with its origin; who writes into a shared block copies it first.
// Layers with a window give back the blocks that no token will see again, but for those of the sinks.
//
// With a budget below 1 a cache keeps that share of its blocks: compress() gives back those that queries have
// looked at least, in whichever head they are, and never the first block or the last two (KV-Compress, Rehg
// 2024, arXiv 2410.00161). What is left is no longer what the model would have seen: a lossy trick.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "kv_cache/block_pool.h"
#include "model/config.h"

namespace russet {

class KvCache {
 public:
  KvCache(std::shared_ptr<BlockPool> pool, const Config& config, int n_ctx, double budget = 1);
  KvCache(const KvCache& origin, int n_tokens);  // a fork of its first n_tokens; throws Error{usage}
  // Of blocks that others hold, which it shares: tables [n_layers * n_kv_heads][blocks of n_tokens], one
  // after the other. A table has kNoBlock where its layer's window has given blocks back, behind the sinks,
  // and nowhere else. Throws Error{usage}.
  KvCache(std::shared_ptr<BlockPool> pool, const Config& config, int n_ctx, int n_tokens,
          std::span<const BlockId> tables);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;
  ~KvCache();

  // Blocks by index, [table_size()] each; head after head of layer after layer they lie one after the other.
  const BlockId* table(int layer, int head) const {
    return const_cast<KvCache*>(this)->table_of(size_t(layer) * n_heads_ + size_t(head));
  }
  size_t table_size() const { return table_size_; }
  const Buffer& tables() const { return tables_; }
  BlockPool& pool() const { return *pool_; }
  // Where a position's block begins. The position must be reserved, or held.
  char* block(int layer, int head, int pos) const {
    return pool_->at(table(layer, head)[size_t(pos) / kBlockTokens]);
  }

  bool fits(const Config& config) const;  // whether it has as many layers, heads, and of the same size

  int n_ctx() const { return n_ctx_; }        // tokens it can hold
  int n_tokens() const { return n_tokens_; }  // tokens it holds
  // Makes room for n_tokens more, in blocks of its own. Throws Error{context_full}, Error{memory}.
  void reserve(int n_tokens);
  void append(int n_tokens);    // counts tokens that were reserved and written
  void truncate(int n_tokens);  // forgets the tokens from n_tokens on; throws Error{usage}
  // Whether what a token after the first n_tokens sees is still there: windows give blocks back.
  bool can_truncate(int n_tokens) const;
  // Where the budget is below 1, how much each block of the head has been looked at; see attention_mass.h.
  bool masses() const { return budget_ < 1; }
  float* mass(int layer, int head) const {
    return masses_.floats() + (size_t(layer) * n_heads_ + size_t(head)) * table_size_;
  }
  void compress();  // down to the budget

  size_t bytes() const { return n_held_ * pool_->block_bytes(); }  // of the blocks it holds, shared or not

 private:
  // Tokens behind which a window's blocks are kept, so that a few can be taken back.
  static constexpr int kRewindTokens = kBlockTokens;

  BlockId* table_of(size_t head_of_all) {
    return static_cast<BlockId*>(static_cast<void*>(tables_.bytes())) + head_of_all * table_size_;
  }
  size_t n_tables() const { return windows_.size() * n_heads_; }
  size_t first_block(size_t layer, int n_tokens) const;  // that a token after n_tokens sees
  void release(BlockId* begin, BlockId* end);

  std::shared_ptr<BlockPool> pool_;
  std::vector<int> windows_;   // [n_layers], 0: none
  std::vector<size_t> begin_;  // [n_layers] first block that its window has not given back
  size_t n_heads_, table_size_, n_sink_blocks_;
  size_t end_ = 0;     // of the blocks that a table may name
  size_t n_held_ = 0;  // blocks
  int n_ctx_, n_tokens_ = 0;
  double budget_;
  int compressed_at_ = 0;  // tokens when blocks were given back last: what came before cannot be had again
  Buffer tables_, masses_;
};

}  // namespace russet
