#include "kv_cache/kv_cache.h"

#include "core/check.h"

namespace russet {

KvCache::KvCache(const Config& c, int n_ctx, DType dtype)
    : n_layers_(size_t(c.n_layers)),
      n_heads_(size_t(c.n_kv_heads)),
      head_dim_(size_t(c.head_dim)),
      dtype_(dtype),
      n_ctx_(n_ctx) {
  check(n_ctx >= 1, ErrorKind::usage, "n_ctx: expected at least 1, got ", n_ctx);
  const size_t n_blocks = (size_t(n_ctx) + kAttentionKeys - 1) / kAttentionKeys;
  buffer_ = Buffer(n_blocks * block_bytes());
}

void KvCache::check_room(int n_tokens) const {
  check(n_tokens <= n_ctx_ - n_tokens_, ErrorKind::context_full, n_tokens_, " tokens in the context and ",
        n_tokens, " more make ", n_tokens_ + n_tokens, ", n_ctx is ", n_ctx_,
        "; shorten the prompt, or load with a larger n_ctx");
}

void KvCache::append(int n_tokens) {
  check_room(n_tokens);
  n_tokens_ += n_tokens;
}

void KvCache::truncate(int n_tokens) {
  check(n_tokens >= 0 && n_tokens <= n_tokens_, ErrorKind::usage, "truncate: expected 0 to ", n_tokens_,
        " tokens, got ", n_tokens);
  n_tokens_ = n_tokens;
}

}  // namespace russet
