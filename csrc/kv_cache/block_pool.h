// BlockPool: the memory of all caches of a model: blocks of one size, each with a count of the caches that
// hold it.
//
// Addresses for all blocks are reserved at once and the lowest are handed out first, so that the system gives
// pages only as far as blocks have ever been in use at one time; no block moves. When the last block is given
// back, so are the pages. Caches of several threads may share a pool.
#pragma once
#include <mutex>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "kv_cache/kv_format.h"

namespace russet {

using BlockId = uint32_t;  // 0: none, so that a new table, all zero, is empty
constexpr BlockId kNoBlock = 0;

class BlockPool {
 public:
  // As many blocks as fit in n_bytes, at least one.
  BlockPool(const KvFormat& format, size_t n_bytes);

  const KvFormat& format() const { return format_; }
  char* at(BlockId block) const { return memory_.bytes() + size_t(block) * block_bytes_; }
  char* data() const { return memory_.bytes(); }
  size_t block_bytes() const { return block_bytes_; }
  size_t reserved_bytes() const { return memory_.size(); }

  void take(std::span<BlockId> blocks);           // all or none; throws Error{memory}
  void share(std::span<const BlockId> blocks);    // one more cache holds them
  void release(std::span<const BlockId> blocks);  // one cache less; both pass over kNoBlock
  bool is_shared(BlockId block) const;

  size_t n_blocks() const { return n_blocks_; }  // there can be
  size_t n_in_use() const;                       // held by a cache
  size_t n_peak() const;                         // most that ever were
  size_t touched_bytes() const;                  // from data() on: what lies beyond was never in use

 private:
  KvFormat format_;
  size_t block_bytes_, n_blocks_;
  Buffer memory_, n_holders_;  // n_holders_: uint32_t of every block
  uint32_t* holders() const { return static_cast<uint32_t*>(static_cast<void*>(n_holders_.bytes())); }

  mutable std::mutex lock_;
  std::vector<BlockId> free_;  // of those below n_touched_
  size_t n_touched_ = 1, n_in_use_ = 0, n_peak_ = 0;
};

}  // namespace russet
