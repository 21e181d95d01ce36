// Ops: the seven fused operations a device must give. forward() is written against them alone.
//
// Activations are matrices with one row per token of the batch, in memory the device owns (activations()).
// x, the residual stream, is f32 on every device; what the other matrices are made of is the device's own
// choice, and forward() only hands them on. An operation may return before it is done, as long as the next
// one sees its result.
#pragma once
#include <initializer_list>

#include "model/batch.h"
#include "model/config.h"
#include "weights/weights.h"

namespace russet {

// [n_tokens, ...] each. `hidden` holds what the gate makes; `attended` what attention makes.
struct Activations {
  float* x;
  void *q, *k, *v, *attended, *hidden;
};

struct Ops {
  virtual ~Ops() = default;

  // Room for a batch of n_tokens; valid until the next call.
  virtual Activations activations(int n_tokens) = 0;

  // Begins a pass. x[t] = table[tokens[t]] * scale + positions[pos(t)]; positions may be absent. Where the
  // batch has its own x, x is that.
  virtual void embed(const Batch& batch, const Matrix& table, float scale, const View& positions,
                     float* x) = 0;

  // outputs[i] = weights[i](norm(x)): one norm, read by all of them; without a norm x goes in as it is
  struct LinearOut {
    const Linear& linear;
    void* y;
  };
  virtual void norm_linear(const NormWeights& norm, const float* x, int n_tokens,
                           std::initializer_list<LinearOut> outputs) = 0;

  // Norms and rotates q and k by position (layer's norms and rope, each may be absent), stores k and v in the
  // caches.
  virtual void rope_store(const Batch& batch, int layer, const LayerWeights& weights, void* q, void* k,
                          const void* v) = 0;

  // out = causal attention of q over the caches, which hold the batch's own keys by now
  virtual void attention(const Batch& batch, int layer, const void* q, void* out) = 0;

  // hidden = activation(gate(norm(x))) * up(norm(x)); without an up the activation alone
  virtual void norm_gate(const NormWeights& norm, const Linear& gate, const Linear& up, const float* x,
                         int n_tokens, void* hidden) = 0;

  // x += residual_scale * post_norm(linear(y)); the norm may be absent
  virtual void linear_residual(const Linear& linear, const NormWeights& post_norm, const void* y,
                               int n_tokens, float* x) = 0;

  // logits[i] = softcap(logits_scale * head(norm(x[logit_rows[i]]))), [n_logit_rows, vocab_size] in the
  // host's memory, complete on return
  virtual void norm_logits(const Batch& batch, const NormWeights& norm, const Linear& head, const float* x,
                           float* logits) = 0;
};

}  // namespace russet
