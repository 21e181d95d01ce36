// Weights: one view per role. A role without data does not exist in this model, and forward() skips it.
#pragma once
#include <vector>

#include "core/view.h"
#include "weights/packed.h"

namespace russet {

// A matrix in one of its forms: floats as the checkpoint stores them, or affine groups, packed as the CPU's
// kernels read them or as MLX stores them, which is what the GPU's read.
struct Matrix {
  View floats{};
  Packed packed{};
  Affine affine{};

  explicit operator bool() const { return floats || packed || affine; }
  int n_rows() const { return packed ? packed.n_rows : affine ? affine.n_rows : floats.n_rows; }
  int n_cols() const { return packed ? packed.n_cols : affine ? affine.n_cols : floats.n_cols; }
};

struct Linear {
  Matrix w;                     // [n_outputs, n_inputs]
  const float* bias = nullptr;  // [n_outputs]

  explicit operator bool() const { return bool(w); }
  int n_outputs() const { return w.n_rows(); }
  int n_inputs() const { return w.n_cols(); }
};

struct NormWeights {
  const float* w = nullptr;  // [dim]
  const float* bias = nullptr;
  int dim = 0;

  explicit operator bool() const { return w != nullptr; }
};

struct LayerWeights {
  NormWeights attn_norm, attn_post_norm;  // before q, k, v; on what attention adds (Gemma 2, OLMo 2)
  Linear q, k, v, o;
  NormWeights q_norm, k_norm;  // over head_dim (Qwen3, Gemma 3) or over all heads at once (OLMo 2)
  NormWeights ffn_norm, ffn_post_norm;
  Linear gate, up, down;  // no up: the activation alone, as in GPT-2
};

struct Weights {
  Matrix embed;    // [vocab_size, dim]
  View positions;  // [max_ctx, dim], learned positions
  std::vector<LayerWeights> layers;
  NormWeights final_norm;
  Linear head;  // [vocab_size, dim]; the embedding itself where they are tied
};

}  // namespace russet
