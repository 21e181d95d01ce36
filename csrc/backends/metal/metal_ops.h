// MetalOps: the operations of ops.h as dispatches of the kernels in metal/. An operation returns when it is
// encoded; norm_logits() sends the pass off and waits for it.
//
// Barriers are explicit: each operation ends with one, and has more where its own dispatches follow from each
// other. A layer is 6 dispatches while tokens come one by one (matvec of q, k and v; rope_store; attention;
// matvec of o; of gate and up; of down), each of which needs all of what the one before it has written.
#pragma once
#include <map>
#include <vector>

#include "backends/metal/device.h"
#include "backends/ops.h"
#include "core/buffer.h"
#include "kv_cache/kv_format.h"
#include "metal/args.h"
#include "model/places.h"

namespace russet::metal {

// What the device is shown for as long as this lives.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Device& device, const void* begin, size_t n_bytes);  // up to the end of the last page
  ~Mapping();
  Mapping(Mapping&& other) noexcept { *this = std::move(other); }
  Mapping& operator=(Mapping&& other) noexcept;
  size_t size() const { return n_bytes_; }

 private:
  Device* device_ = nullptr;
  const void* begin_ = nullptr;
  size_t n_bytes_ = 0;
};

// How a matrix is stored, as kernels' names say it: the type of floats, or bits and the type of scales.
struct Storage {
  int bits = 0;  // 0: floats
  DType dtype = DType::f32;

  static Storage of(const Matrix& w);
  std::string name() const;  // "f16", "int8_bf16"
  auto operator<=>(const Storage&) const = default;
};

class MetalOps : public Ops {
 public:
  // The weights lie in memory the device has been shown, affine groups as MLX stores them; in_cache: of keys
  // and values. Looks up every kernel that a pass over them may need. Throws Error{device} where one is
  // missing, and Error{weights} where the weights are stored as no kernel reads them.
  MetalOps(const Config& config, const Weights& weights, DType dtype, KvType in_cache, Device& device);

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

  // One pass whose logits stay where they are: the device takes its token from `token`, where that is not
  // null, and leaves the likeliest next one for the host and for the pass after it. Returns before it is
  // done.
  struct Likeliest {
    uint64_t pass = 0;               // 0: none
    const int32_t* token = nullptr;  // -1: a logit is NaN
  };
  Likeliest forward_likeliest(const Weights& weights, const Batch& batch, const int32_t* token);
  int32_t wait(const Likeliest& likeliest);  // its token is kept until the pass after the next
  uint64_t last_pass() const { return last_pass_; }

  // Sends off what was encoded, and waits for it: for operations that run by themselves.
  void finish();

  DType dtype() const { return dtype_; }

  // Waits for what was begun: before a cache's blocks are shared, or given back, or its tables change.
  void settle() { device_.settle(last_pass_); }
  void forget(const KvCache& cache);  // before its memory goes

 private:
  // The products of one kind of matrix. "float" ones write float, from T or, where `x` is in the name, from
  // float.
  struct Products {
    Pipeline matvec, matvec_residual, matvec_gate, matvec_float, matvec_float_x;
    Pipeline matmul, matmul_residual, matmul_gate, matmul_float;
  };
  // Memory that grows, and that the device sees.
  struct Room {
    Buffer buffer;
    Mapping mapping;
  };
  // The host writes one pass's inputs while the pass before it may still read its own, and its token.
  struct Slot {
    Room inputs, likeliest;
  };

  std::byte* reserve(Room& room, size_t n_bytes);

  // What a product with a float result reads.
  struct FloatInput {
    const void* data;
    bool is_float = false;          // else T
    NormWeights norm{};             // fused
    const int32_t* rows = nullptr;  // which of data's, all by default
  };

  template <typename Args>
  void encode(const Pipeline& pipeline, const Args& args, std::span<const void* const> pointers, Grid groups,
              Grid threads);
  template <typename Args>
  void encode(const Pipeline& pipeline, const Args& args, std::initializer_list<const void*> pointers,
              Grid groups, Grid threads) {
    encode(pipeline, args, std::span(pointers.begin(), pointers.size()), groups, threads);
  }
  const Products& products(const Matrix& w) const { return products_.at(Storage::of(w)); }
  Cache cache_args(const KvCache& cache, int layer) const;
  const float* normed_float(const NormWeights& norm, const float* x, int n_tokens);
  const void* normed(const NormWeights& norm, const float* x, const int32_t* rows, int n_tokens);
  void linear_float(const Linear& linear, const FloatInput& in, int n_tokens, float scale, float softcap,
                    float* out);
  void find_likeliest(const float* logits, int vocab_size);
  Slot& slot() { return slots_[n_passes_ % 2]; }  // of the pass being encoded
  void commit();
  void show(const KvCache& cache);
  MatvecArgs matvec_args(const NormWeights& norm, const Linear& linear, int n_tokens) const;
  MatmulArgs matmul_args(const Linear& linear, int n_tokens) const;

  const Config& config_;
  const DType dtype_;
  Device& device_;

  Pipeline argmax_parts_, argmax_, embed_, norm_, norm_float_, norm_self_, norm_residual_, rope_store_;
  Pipeline attention_decode_, attention_merge_, attention_prefill_;
  std::map<Storage, Products> products_;

  Places places_;
  Room activations_, logits_;
  Slot slots_[2];
  uint64_t n_passes_ = 0, last_pass_ = 0;  // of this model; of the device, which others may share
  const int32_t* next_token_ = nullptr;    // on the device, of the pass being encoded; null: the batch has it
  Likeliest likeliest_;                    // of the pass encoded last
  float* whole_ = nullptr;                 // [n_tokens, dim]: what a norm comes after, or has made in float
  void* normed_ = nullptr;                 // [n_tokens, dim] T
  float* partial_ = nullptr;               // of attention
  const int32_t* rows_ = nullptr;          // of the logits
  std::vector<const float*> cos_, sin_;    // of each rope, where the device sees them
  std::map<const KvCache*, Mapping> tables_;  // what the device sees of each
  Mapping pool_;                              // which all have in common
};

}  // namespace russet::metal
