#include "kv_cache/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace russet {

KvCache::KvCache(std::shared_ptr<BlockPool> pool, const Config& c, int n_ctx, double budget)
    : pool_(std::move(pool)),
      windows_(c.layer_window),
      begin_(windows_.size(), 0),
      n_heads_(size_t(c.n_kv_heads)),
      table_size_(blocks_for(std::max(n_ctx, 1))),
      n_sink_blocks_(blocks_for(c.n_sinks)),
      n_ctx_(n_ctx),
      budget_(budget),
      tables_(n_tables() * table_size_ * sizeof(BlockId)),
      masses_(masses() ? n_tables() * table_size_ * sizeof(float) : 0) {
  check(budget > 0 && budget <= 1, ErrorKind::usage, "kv_budget: expected more than 0 and at most 1, got ",
        budget);
  check(n_ctx >= 1, ErrorKind::usage, "n_ctx: expected at least 1, got ", n_ctx);
}

KvCache::KvCache(const KvCache& origin, int n_tokens)
    : pool_(origin.pool_),
      windows_(origin.windows_),
      begin_(origin.begin_),
      n_heads_(origin.n_heads_),
      table_size_(origin.table_size_),
      n_sink_blocks_(origin.n_sink_blocks_),
      end_(blocks_for(n_tokens)),
      n_ctx_(origin.n_ctx_),
      n_tokens_(n_tokens),
      budget_(origin.budget_),
      compressed_at_(origin.compressed_at_),
      tables_(n_tables() * table_size_ * sizeof(BlockId)),
      masses_(origin.masses_.size()) {
  check(origin.can_truncate(n_tokens), ErrorKind::usage, "fork: cannot take the first ", n_tokens, " of ",
        origin.n_tokens_, " tokens");
  for (size_t t = 0; t < n_tables(); ++t) {
    const BlockId* from = const_cast<KvCache&>(origin).table_of(t);
    std::copy_n(from, end_, table_of(t));
    pool_->share({from, end_});
    n_held_ += end_ - size_t(std::count(from, from + end_, kNoBlock));
  }
  std::copy_n(origin.masses_.floats(), masses_.size() / sizeof(float), masses_.floats());
}

KvCache::KvCache(std::shared_ptr<BlockPool> pool, const Config& c, int n_ctx, int n_tokens,
                 std::span<const BlockId> tables)
    : KvCache(std::move(pool), c, n_ctx) {
  check(n_tokens >= 1 && n_tokens <= n_ctx, ErrorKind::usage, "cache: expected 1 to ", n_ctx, " tokens, got ",
        n_tokens);
  const size_t n_blocks = blocks_for(n_tokens);
  check(tables.size() == n_tables() * n_blocks, ErrorKind::usage, "cache: expected tables of ",
        n_tables() * n_blocks, " blocks, got ", tables.size());
  for (size_t layer = 0; layer < windows_.size(); ++layer) {
    const std::span<const BlockId> first = tables.subspan(layer * n_heads_ * n_blocks, n_blocks);
    size_t begin = n_sink_blocks_;
    while (begin < n_blocks && first[begin] == kNoBlock) ++begin;
    begin_[layer] = begin > n_sink_blocks_ ? begin : 0;
    check(begin_[layer] <= first_block(layer, n_tokens), ErrorKind::usage, "cache: layer ", layer,
          " lacks blocks that a token would see");
    for (size_t head = 0; head < n_heads_; ++head)
      for (size_t i = 0; i < n_blocks; ++i)
        check((tables[(layer * n_heads_ + head) * n_blocks + i] == kNoBlock) ==
                  (i >= n_sink_blocks_ && i < begin),
              ErrorKind::usage, "cache: head ", head, " of layer ", layer, " lacks block ", i);
  }
  // From here on nothing throws: what is shared is given back by the destructor.
  end_ = n_blocks;
  n_tokens_ = n_tokens;
  pool_->share(tables);
  for (size_t t = 0; t < n_tables(); ++t) std::copy_n(tables.data() + t * n_blocks, n_blocks, table_of(t));
  n_held_ = tables.size() - size_t(std::count(tables.begin(), tables.end(), kNoBlock));
}

KvCache::~KvCache() {
  for (size_t t = 0; t < n_tables(); ++t) release(table_of(t), table_of(t) + end_);
}

bool KvCache::fits(const Config& c) const {
  return windows_ == c.layer_window && n_heads_ == size_t(c.n_kv_heads) &&
         pool_->format().head_dim == c.head_dim;
}

void KvCache::release(BlockId* begin, BlockId* end) {
  pool_->release({begin, end});
  n_held_ -= size_t(end - begin - std::count(begin, end, kNoBlock));
  std::fill(begin, end, kNoBlock);
}

void KvCache::reserve(int n_tokens) {
  check(n_tokens <= n_ctx_ - n_tokens_, ErrorKind::context_full, n_tokens_, " tokens in the context and ",
        n_tokens, " more make ", n_tokens_ + n_tokens, ", n_ctx is ", n_ctx_,
        "; shorten the prompt, or load with a larger n_ctx");
  const size_t begin = size_t(n_tokens_) / kBlockTokens, end = blocks_for(n_tokens_ + n_tokens);
  std::vector<BlockId*> wanted;
  for (size_t t = 0; t < n_tables(); ++t)
    for (BlockId* block = table_of(t) + begin; block != table_of(t) + end; ++block)
      if (*block == kNoBlock || pool_->is_shared(*block)) wanted.push_back(block);
  if (wanted.empty()) return;
  std::vector<BlockId> taken(wanted.size());
  pool_->take(taken);
  end_ = std::max(end_, end);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const BlockId old = std::exchange(*wanted[i], taken[i]);
    if (old == kNoBlock) {
      ++n_held_;
      continue;
    }
    std::memcpy(pool_->at(taken[i]), pool_->at(old), pool_->block_bytes());
    pool_->release({&old, 1});
  }
}

void KvCache::append(int n_tokens) {
  n_tokens_ += n_tokens;
  for (size_t layer = 0; layer < windows_.size(); ++layer) {
    const size_t first = first_block(layer, n_tokens_ - kRewindTokens);
    if (first <= begin_[layer]) continue;
    for (size_t t = layer * n_heads_; t < (layer + 1) * n_heads_; ++t)
      release(table_of(t) + std::max(begin_[layer], n_sink_blocks_),
              table_of(t) + std::max(first, n_sink_blocks_));
    begin_[layer] = first;
  }
}

void KvCache::truncate(int n_tokens) {
  check(n_tokens >= 0 && n_tokens <= n_tokens_, ErrorKind::usage, "truncate: expected 0 to ", n_tokens_,
        " tokens, got ", n_tokens);
  check(can_truncate(n_tokens), ErrorKind::usage, "truncate: a token at ", n_tokens,
        " would see keys that are no longer kept; go to 0, and compute them again");
  n_tokens_ = n_tokens;
  // The next token's block stays: a device may be writing ahead.
  const size_t kept = n_tokens == 0 ? 0 : size_t(n_tokens) / kBlockTokens + 1;
  if (kept < end_) {
    for (size_t t = 0; t < n_tables(); ++t) release(table_of(t) + kept, table_of(t) + end_);
    end_ = kept;
  }
  if (n_tokens > 0) return;
  std::fill(begin_.begin(), begin_.end(), 0);
  std::fill_n(masses_.floats(), masses_.size() / sizeof(float), 0.0f);
  compressed_at_ = 0;
}

bool KvCache::can_truncate(int n_tokens) const {
  if (n_tokens < 0 || n_tokens > n_tokens_ || (n_tokens > 0 && n_tokens < compressed_at_)) return false;
  for (size_t layer = 0; layer < windows_.size(); ++layer)
    if (n_tokens > 0 && first_block(layer, n_tokens) < begin_[layer]) return false;
  return true;
}

void KvCache::compress() {
  const size_t n_blocks = blocks_for(n_tokens_);
  const auto n_kept = size_t(std::ceil(budget_ * double(n_tables() * n_blocks)));
  if (!masses() || n_held_ <= n_kept) return;
  struct Candidate {
    float mass;
    BlockId* block;
  };
  std::vector<Candidate> candidates;
  for (size_t t = 0; t < n_tables(); ++t) {
    const float* const mass = masses_.floats() + t * table_size_;
    for (size_t b = 1; b + 2 < n_blocks; ++b)
      if (BlockId* const block = table_of(t) + b; *block != kNoBlock) candidates.push_back({mass[b], block});
  }
  if (candidates.empty()) return;
  const auto by_mass = [](const Candidate& a, const Candidate& b) { return a.mass < b.mass; };
  std::stable_sort(candidates.begin(), candidates.end(), by_mass);
  candidates.resize(std::min(candidates.size(), n_held_ - n_kept));
  for (const Candidate& c : candidates) release(c.block, c.block + 1);
  // What was looked at long ago counts for less and less.
  for (size_t i = 0; i < masses_.size() / sizeof(float); ++i) masses_.floats()[i] /= 2;
  compressed_at_ = n_tokens_;
}

size_t KvCache::first_block(size_t layer, int n_tokens) const {
  return size_t(first_key(n_tokens, windows_[layer])) / kBlockTokens;
}

}  // namespace russet
