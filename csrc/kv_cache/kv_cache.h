// KvCache: the keys and values of one sequence, all layers, f32.
//
// Each head's keys lie together, position after position, and so do its values: attention reads them as one
// stream. The whole context is reserved at once and the system gives pages as rows are written, so nothing is
// copied or allocated while tokens come.
#pragma once
#include "core/buffer.h"
#include "model/config.h"

namespace russet {

class KvCache {
 public:
  KvCache(const Config& config, int n_ctx);

  float* k(int layer, int head) const { return rows(2 * size_t(layer), size_t(head)); }  // [n_ctx, head_dim]
  float* v(int layer, int head) const { return rows(2 * size_t(layer) + 1, size_t(head)); }
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
  float* rows(size_t keys_or_values, size_t head) const {
    return buffer_.floats() + (keys_or_values * n_heads_ + head) * size_t(n_ctx_) * head_dim_;
  }
  size_t n_layers_, n_heads_, head_dim_;
  int n_ctx_, n_tokens_ = 0;
  Buffer buffer_;
};

}  // namespace russet
