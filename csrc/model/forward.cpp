#include "model/forward.h"

#include <string>

#include "core/check.h"
#include "kernels/matmul/matmul.h"
#include "kv_cache/kv_cache.h"

namespace russet {

static void check_batch(const Config& config, const Weights& weights, const Batch& batch) {
  check(weights.embed || batch.x, ErrorKind::usage,
        "forward: these are the last layers of a model, they need x of those before");
  for (const int32_t token : batch.tokens)
    check(token >= 0 && token < config.vocab_size, ErrorKind::usage, "token id ", token, ": expected 0 to ",
          config.vocab_size - 1);
  for (const Segment& s : batch.segments) {
    check(!weights.positions || s.pos + s.n_tokens <= config.max_ctx, ErrorKind::context_full,
          s.pos + s.n_tokens, " tokens: the model knows only ", config.max_ctx,
          " positions; shorten the prompt");
  }
}

void forward(const Config& config, const Weights& weights, Ops& ops, const Batch& batch, float* logits,
             const std::function<void()>& before_layer) {
  check_batch(config, weights, batch);
  for (const Segment& s : batch.segments) s.cache->reserve(s.n_tokens);
  const int n = batch.n_tokens();
  const Activations a = ops.activations(n);

  ops.embed(batch, weights.embed, config.embed_scale, weights.positions, a.x);
  for (int layer = 0; layer < config.n_layers; ++layer) {
    if (before_layer) before_layer();
    const LayerWeights& w = weights.layers[size_t(layer)];
    ops.norm_linear(w.attn_norm, a.x, n, {{w.q, a.q}, {w.k, a.k}, {w.v, a.v}});
    ops.rope_store(batch, layer, w, a.q, a.k, a.v);
    ops.attention(batch, layer, a.q, a.attended);
    if (config.parallel_residual) {
      ops.norm_gate(w.ffn_norm, w.gate, w.up, a.x, n, a.hidden);
      ops.linear_residual(w.o, w.attn_post_norm, a.attended, n, a.x);
    } else {
      ops.linear_residual(w.o, w.attn_post_norm, a.attended, n, a.x);
      ops.norm_gate(w.ffn_norm, w.gate, w.up, a.x, n, a.hidden);
    }
    ops.linear_residual(w.down, w.ffn_post_norm, a.hidden, n, a.x);
  }
  ops.norm_logits(batch, weights.final_norm, weights.head, a.x, logits);

  for (const Segment& s : batch.segments) {
    s.cache->append(s.n_tokens);
    s.cache->compress();
  }
}

namespace {

struct Checker {
  std::string where;  // "layers.3."

  void linear(const char* role, const Linear& l, int n_outputs, int n_inputs, bool optional = false) const {
    if (!l && optional) return;
    check(bool(l), ErrorKind::weights, where, role, ": missing");
    check(l.n_outputs() == n_outputs && l.n_inputs() == n_inputs, ErrorKind::weights, where, role,
          ": expected [", n_outputs, ", ", n_inputs, "], got [", l.n_outputs(), ", ", l.n_inputs(), "]");
  }
  void norm(const char* role, const NormWeights& n, int dim, int or_dim = 0) const {
    check(!n || n.dim == dim || (or_dim && n.dim == or_dim), ErrorKind::weights, where, role, ": expected [",
          dim, "], got [", n.dim, "]");
  }
};

}  // namespace

void check_weights(const Config& c, const Weights& weights) {
  check(c.n_layers >= 1 && c.dim >= 1 && c.n_heads >= 1 && c.n_kv_heads >= 1 && c.head_dim >= 1 &&
            c.ffn_dim >= 1 && c.vocab_size >= 1 && c.max_ctx >= 1,
        ErrorKind::weights, "config: every size must be at least 1");
  check(c.n_heads % c.n_kv_heads == 0, ErrorKind::weights, "config: ", c.n_heads,
        " heads are no multiple of ", c.n_kv_heads, " key-value heads");
  check(c.head_dim <= kMaxHeadDim, ErrorKind::weights, "config: head_dim ", c.head_dim,
        " is above the largest, ", int(kMaxHeadDim));
  for (const int width : {c.dim, c.ffn_dim, c.n_heads * c.head_dim})
    check(size_t(width) <= kMatmulScratchFloats, ErrorKind::weights, "config: a width of ", width,
          " is too large");
  check(c.layer_rope.size() == size_t(c.n_layers) && c.layer_window.size() == size_t(c.n_layers),
        ErrorKind::weights, "config: layer_rope and layer_window need one entry per layer");
  for (const int r : c.layer_rope)
    check(r >= -1 && r < int(c.ropes.size()), ErrorKind::weights, "config: layer_rope ", r, " has no rope");
  for (const Rope& r : c.ropes)
    check(!r.inv_freq.empty() && 2 * r.inv_freq.size() <= size_t(c.head_dim) &&
              (r.long_inv_freq.empty() || r.long_inv_freq.size() == r.inv_freq.size()),
          ErrorKind::weights, "config: a rope needs 1 to head_dim / 2 frequencies");

  const int q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim;
  const Checker top{""};
  top.linear("embed", {weights.embed}, c.vocab_size, c.dim, true);
  top.linear("positions", {{.floats = weights.positions}}, c.max_ctx, c.dim, true);
  top.norm("final_norm", weights.final_norm, c.dim);
  top.linear("head", weights.head, c.vocab_size, c.dim);
  check(weights.layers.size() == size_t(c.n_layers), ErrorKind::weights, "layers: expected ", c.n_layers,
        ", got ", weights.layers.size());
  for (int i = 0; i < c.n_layers; ++i) {
    const LayerWeights& w = weights.layers[size_t(i)];
    const Checker layer{"layers." + std::to_string(i) + "."};
    layer.norm("attn_norm", w.attn_norm, c.dim);
    layer.norm("attn_post_norm", w.attn_post_norm, c.dim);
    layer.linear("q", w.q, q_dim, c.dim);
    layer.linear("k", w.k, kv_dim, c.dim);
    layer.linear("v", w.v, kv_dim, c.dim);
    layer.linear("o", w.o, c.dim, q_dim);
    layer.norm("q_norm", w.q_norm, c.head_dim, q_dim);
    layer.norm("k_norm", w.k_norm, c.head_dim, kv_dim);
    layer.norm("ffn_norm", w.ffn_norm, c.dim);
    layer.norm("ffn_post_norm", w.ffn_post_norm, c.dim);
    layer.linear("gate", w.gate, c.ffn_dim, c.dim);
    layer.linear("up", w.up, c.ffn_dim, c.dim, true);
    layer.linear("down", w.down, c.dim, c.ffn_dim);
  }
}

}  // namespace russet
