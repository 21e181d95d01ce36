// KvCache: the keys and values of one sequence, all layers, in the type its device computes in.
//
// Blocks of kAttentionKeys positions follow each other; a block holds, layer by layer and head by head, the
// keys of its positions, then their values. So attention reads a head's keys in long runs, and memory fills
// from its beginning: it can have huge pages. The whole context is reserved at once and the system gives
// pages as they are written, so nothing is copied or allocated while tokens come.
#pragma once
#include "core/buffer.h"
#include "core/view.h"
#include "kernels/attention/attention.h"
#include "model/config.h"

namespace russet {

class KvCache {
 public:
  KvCache(const Config& config, int n_ctx, DType dtype = DType::f32);

  // Keys and values of the first block, [kAttentionKeys, head_dim] of T, which is what dtype says; the next
  // block's are block_elements() on.
  template <typename T>
  T* k(int layer, int head) const {
    return static_cast<T*>(data()) + of_block_0(2 * size_t(layer), size_t(head));
  }
  template <typename T>
  T* v(int layer, int head) const {
    return static_cast<T*>(data()) + of_block_0(2 * size_t(layer) + 1, size_t(head));
  }
  size_t block_elements() const { return 2 * n_layers_ * n_heads_ * head_elements(); }
  size_t offset(int pos) const {  // of a position's row from the first block's k or v
    return size_t(pos / kAttentionKeys) * block_elements() + size_t(pos % kAttentionKeys) * head_dim_;
  }
  bool fits(const Config& c, DType dtype) const {
    return n_layers_ == size_t(c.n_layers) && n_heads_ == size_t(c.n_kv_heads) &&
           head_dim_ == size_t(c.head_dim) && dtype_ == dtype;
  }

  void* data() const { return buffer_.bytes(); }
  size_t reserved_bytes() const { return buffer_.size(); }
  size_t block_bytes() const { return block_elements() * size_of(dtype_); }

  int n_ctx() const { return n_ctx_; }        // tokens it can hold
  int n_tokens() const { return n_tokens_; }  // tokens it holds
  void append(int n_tokens);                  // counts rows written; throws Error{context_full}
  void check_room(int n_tokens) const;        // the same check, before they are written
  void truncate(int n_tokens);                // forgets the tokens from n_tokens on; throws Error{usage}
  size_t bytes() const { return size_t(n_tokens_) * n_layers_ * 2 * n_heads_ * head_dim_ * size_of(dtype_); }

 private:
  size_t head_elements() const { return kAttentionKeys * head_dim_; }
  size_t of_block_0(size_t keys_or_values, size_t head) const {
    return (keys_or_values * n_heads_ + head) * head_elements();
  }
  size_t n_layers_, n_heads_, head_dim_;
  DType dtype_;
  int n_ctx_, n_tokens_ = 0;
  Buffer buffer_;
};

}  // namespace russet
