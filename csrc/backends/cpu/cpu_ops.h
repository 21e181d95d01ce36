// CpuOps: the operations of ops.h on the CPU kernels and the thread pool. An operation is done when it
// returns.
#pragma once
#include <vector>

#include "backends/cpu/input.h"
#include "backends/cpu/screen.h"
#include "backends/ops.h"
#include "core/buffer.h"
#include "core/parallel.h"
#include "kernels/attention/attention_int8.h"
#include "model/places.h"

namespace russet {

class CpuOps : public Ops {
 public:
  // Few tokens, as in decode, are bound by memory, many by arithmetic: each has a number of threads of its
  // own.
  // head_trust: how far the bounds of a screened head are believed, see ScreenArgs; 1 is exact.
  CpuOps(const Config& config, int n_threads, int n_prefill_threads,
         AttentionKind attention = AttentionKind::exact, double head_trust = 1);

  Activations activations(int n_tokens) override;
  void embed(const Batch& batch, const Matrix& table, float scale, const View& positions, float* x) override;
  void norm_linear(const NormWeights& norm, const float* x, int n_tokens,
                   std::initializer_list<LinearOut> outputs) override;
  void rope_store(const Batch& batch, int layer, const LayerWeights& weights, void* q, void* k,
                  const void* v) override;
  void attention(const Batch& batch, int layer, const void* q, void* out) override;
  void norm_gate(const NormWeights& norm, const Linear& gate, const Linear& up, const float* x, int n_tokens,
                 void* hidden) override;
  void linear_residual(const Linear& linear, const NormWeights& post_norm, const void* y, int n_tokens,
                       float* x) override;
  void norm_logits(const Batch& batch, const NormWeights& norm, const Linear& head, const float* x,
                   float* logits) override;

  const ScreenCounts& screened() const { return screened_; }
  int n_decode_threads() const { return n_decode_threads_; }
  int n_prefill_threads() const { return n_prefill_threads_; }

 private:
  Input input_here(const NormWeights& norm, const float* x, int n_tokens, const Forms& forms, Share share);
  Input input_once(const NormWeights& norm, const float* x, int n_tokens, const Forms& forms);
  void apply_norm(const NormWeights& norm, const float* x, int n_tokens, float* y) const;
  void reserve(int n_tokens);
  void store(const Segment& s, int layer, int begin, int end, const float* k, const float* v) const;
  void observe(const Segment& s, int layer, const float* q);
  float* matmul_scratch(Share share) const;
  float* block_scratch(Share share) const;

  const Config& config_;
  const int n_decode_threads_, n_prefill_threads_;
  AttentionFn& attend_;
  const double head_trust_;
  int n_threads_ = 1;  // of the two, what the running operation takes
  int capacity_ = 0;   // tokens the buffers have room for
  Buffer activations_, whole_, scratch_;
  Buffer partials_;               // of attention's runs
  Buffer observed_;               // by attention_mass()
  InputRoom shared_room_;         // for many tokens: each is prepared once
  std::vector<InputRoom> rooms_;  // for few, one per thread: each thread prepares them for itself
  Places places_;
  ScreenCounts screened_;
};

}  // namespace russet
