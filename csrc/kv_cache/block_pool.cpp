#include "kv_cache/block_pool.h"

#include <algorithm>

#include "core/check.h"

namespace russet {

BlockPool::BlockPool(const KvFormat& format, size_t n_bytes)
    : format_(format),
      block_bytes_(format.block_bytes()),
      n_blocks_(std::clamp<size_t>(n_bytes / block_bytes_, 1, UINT32_MAX - 1)),
      memory_((1 + n_blocks_) * block_bytes_),
      n_holders_((1 + n_blocks_) * sizeof(uint32_t)) {}

void BlockPool::take(std::span<BlockId> blocks) {
  const std::lock_guard<std::mutex> guard(lock_);
  const size_t n_free = n_blocks_ - n_in_use_;
  check(blocks.size() <= n_free, ErrorKind::memory, "cache: ", blocks.size() * block_bytes_ / 1000,
        " kB more for keys and values, ", n_in_use_ * block_bytes_ / 1000, " kB of ",
        n_blocks_ * block_bytes_ / 1000,
        " kB are in use; end another conversation, raise max_memory, or take kv_dtype='int8'");
  for (BlockId& block : blocks) {
    if (free_.empty()) {
      block = BlockId(n_touched_++);
    } else {
      block = free_.back();
      free_.pop_back();
    }
    holders()[block] = 1;
  }
  n_in_use_ += blocks.size();
  n_peak_ = std::max(n_peak_, n_in_use_);
  free_.reserve(n_touched_);  // so that giving back never allocates
}

void BlockPool::share(std::span<const BlockId> blocks) {
  const std::lock_guard<std::mutex> guard(lock_);
  for (const BlockId block : blocks)
    if (block != kNoBlock) ++holders()[block];
}

void BlockPool::release(std::span<const BlockId> blocks) {
  const std::lock_guard<std::mutex> guard(lock_);
  for (const BlockId block : blocks) {
    if (block == kNoBlock || --holders()[block] > 0) continue;
    free_.push_back(block);
    --n_in_use_;
  }
  if (n_in_use_ > 0) return;
  memory_.forget(n_touched_ * block_bytes_);
  free_.clear();
  n_touched_ = 1;
}

bool BlockPool::is_shared(BlockId block) const {
  const std::lock_guard<std::mutex> guard(lock_);
  return holders()[block] > 1;
}

size_t BlockPool::n_in_use() const {
  const std::lock_guard<std::mutex> guard(lock_);
  return n_in_use_;
}
size_t BlockPool::n_peak() const {
  const std::lock_guard<std::mutex> guard(lock_);
  return n_peak_;
}
size_t BlockPool::touched_bytes() const {
  const std::lock_guard<std::mutex> guard(lock_);
  return n_touched_ * block_bytes_;
}

}  // namespace russet
