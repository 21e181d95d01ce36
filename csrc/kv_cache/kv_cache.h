// KvCache: the keys and values of one sequence, all layers, f32.
//
// Row p of a layer holds n_kv_heads x head_dim floats of position p. The whole context is reserved at once
// and the system gives pages as rows are written, so nothing is copied or allocated while tokens come.
#pragma once
#include "core/buffer.h"
#include "model/config.h"

namespace russet {

class KvCache {
 public:
  KvCache(const Config& config, int n_ctx);

  float* k(int layer) const { return buffer_.floats() + size_t(2 * layer) * layer_floats(); }
  float* v(int layer) const { return buffer_.floats() + size_t(2 * layer + 1) * layer_floats(); }
  size_t row_floats() const { return row_floats_; }  // from one position to the next
  bool fits(const Config& c) const {
    return n_layers_ == size_t(c.n_layers) && row_floats_ == size_t(c.n_kv_heads) * size_t(c.head_dim);
  }

  int n_ctx() const { return n_ctx_; }        // tokens it can hold
  int n_tokens() const { return n_tokens_; }  // tokens it holds
  void append(int n_tokens);                  // counts rows written; throws Error{context_full}
  void check_room(int n_tokens) const;        // the same check, before they are written
  void truncate(int n_tokens);                // forgets the tokens from n_tokens on; throws Error{usage}
  size_t bytes() const { return size_t(n_tokens_) * n_layers_ * 2 * row_floats_ * sizeof(float); }

  static size_t bytes_per_token(const Config& config);

 private:
  size_t layer_floats() const { return size_t(n_ctx_) * row_floats_; }
  size_t n_layers_, row_floats_;
  int n_ctx_, n_tokens_ = 0;
  Buffer buffer_;
};

}  // namespace russet
