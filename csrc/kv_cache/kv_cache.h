// KvCache: the keys and values of one sequence, all layers, f32.
//
// Blocks of kAttentionKeys positions follow each other; a block holds, layer by layer and head by head, the
// keys of its positions, then their values. So attention reads a head's keys in long runs, and memory fills
// from its beginning: it can have huge pages. The whole context is reserved at once and the system gives
// pages as they are written, so nothing is copied or allocated while tokens come.
#pragma once
#include "core/buffer.h"
#include "kernels/attention/attention.h"
#include "model/config.h"

namespace russet {

class KvCache {
 public:
  KvCache(const Config& config, int n_ctx);

  // Keys and values of the first block, [kAttentionKeys, head_dim] f32; the next block's are block_floats()
  // on.
  float* k(int layer, int head) const { return of_block_0(2 * size_t(layer), size_t(head)); }
  float* v(int layer, int head) const { return of_block_0(2 * size_t(layer) + 1, size_t(head)); }
  size_t block_floats() const { return 2 * n_layers_ * n_heads_ * head_floats(); }
  size_t offset(int pos) const {  // of a position's row from the first block's k or v
    return size_t(pos / kAttentionKeys) * block_floats() + size_t(pos % kAttentionKeys) * head_dim_;
  }
  bool fits(const Config& c) const {
    return n_layers_ == size_t(c.n_layers) && n_heads_ == size_t(c.n_kv_heads) &&
           head_dim_ == size_t(c.head_dim);
  }

  int n_ctx() const { return n_ctx_; }        // tokens it can hold
  int n_tokens() const { return n_tokens_; }  // tokens it holds
  void append(int n_tokens);                  // counts rows written; throws Error{context_full}
  void check_room(int n_tokens) const;        // the same check, before they are written
  void truncate(int n_tokens);                // forgets the tokens from n_tokens on; throws Error{usage}
  size_t bytes() const { return size_t(n_tokens_) * n_layers_ * 2 * n_heads_ * head_dim_ * sizeof(float); }

  static size_t bytes_per_token(const Config& config);

 private:
  size_t head_floats() const { return kAttentionKeys * head_dim_; }
  float* of_block_0(size_t keys_or_values, size_t head) const {
    return buffer_.floats() + (keys_or_values * n_heads_ + head) * head_floats();
  }
  size_t n_layers_, n_heads_, head_dim_;
  int n_ctx_, n_tokens_ = 0;
  Buffer buffer_;
};

}  // namespace russet
