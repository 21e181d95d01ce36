// Config: everything forward() must know about a model, as plain numbers. A family's differences are fields
// here; python/russet/models/ fills them in from config.json.
#pragma once
#include <vector>

#include "kernels/gate/gate.h"
#include "kernels/norm/norm.h"

namespace russet {

// One way of turning positions into angles: angle = position * inv_freq[i]. Some layers may use another, or
// none.
struct Rope {
  std::vector<float> inv_freq;  // rotary_dim / 2 frequencies
  std::vector<float>
      long_inv_freq;  // instead of them once the text is longer than original_ctx (longrope), or empty
  float scale = 1, long_scale = 1;  // cos and sin are multiplied by it (yarn, longrope)
  int original_ctx = 0;             // context the model was trained with, for longrope and dynamic
  float dynamic_factor = 0;         // dynamic NTK: the base grows with the length of the text; 0: it does not
  float theta = 10000;              // base of the frequencies, for dynamic

  bool operator==(const Rope&) const = default;
};

struct Config {
  int n_layers = 0, dim = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, ffn_dim = 0, vocab_size = 0;
  int max_ctx = 0;  // positions the model knows

  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f;
  Activation activation = Activation::silu;
  bool parallel_residual = false;  // x + attention(x) + mlp(x), both from the same x (GPT-NeoX)

  float embed_scale = 1;        // on the embedding (Gemma, Granite)
  float residual_scale = 1;     // on what a block adds to the residual stream (Granite)
  float attention_scale = 1;    // on q . k
  float attention_softcap = 0;  // 0: none (Gemma 2)
  float logits_scale = 1;       // on the logits (Granite)
  float logits_softcap = 0;     // 0: none (Gemma 2)

  std::vector<Rope> ropes;        // empty: positions are learned (GPT-2)
  std::vector<int> layer_rope;    // [n_layers] index into ropes, -1: none
  std::vector<int> layer_window;  // [n_layers] keys a query sees, 0: all before it
  int n_sinks = 0;                // first keys of a text that every query sees, whatever the window

  bool operator==(const Config&) const = default;
};

}  // namespace russet
