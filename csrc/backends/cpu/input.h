// Input: the tokens that the products of one operation read, in every form their weights ask for: floats, and
// for packed weights int8 in groups of 32, 64 or 128.
#pragma once
#include <initializer_list>

#include "core/buffer.h"
#include "kernels/qmatmul/qmatmul.h"
#include "model/config.h"
#include "weights/weights.h"

namespace russet {

constexpr int kGroupSizes[] = {32, 64, 128};

struct Input {
  const float* x = nullptr;                           // [n_tokens, n_cols]
  QuantizedX quantized[std::size(kGroupSizes)] = {};  // the same; only what the readers need

  const QuantizedX& in_groups_of(int group_size) const {
    return quantized[group_size == 32 ? 0 : group_size == 64 ? 1 : 2];
  }
};

// What the weights that read an Input ask for.
struct Forms {
  int n_cols = 0;
  bool in_groups[std::size(kGroupSizes)] = {};

  Forms(std::initializer_list<const Linear*> readers = {}) {
    for (const Linear* reader : readers) add(*reader);
  }
  void add(const Linear& reader) {
    if (!reader) return;
    n_cols = reader.n_inputs();
    for (size_t i = 0; i < std::size(kGroupSizes); ++i)
      in_groups[i] |= reader.w.packed && reader.w.packed.group_size == kGroupSizes[i];
  }
};

// Where an Input is written. Forms that nobody reads take no memory: pages come as they are touched.
class InputRoom {
 public:
  void reserve(int n_tokens, int n_cols);

  // The input of n_tokens tokens, `x` itself where there is no norm; its values are there after prepare().
  Input input(const NormWeights& norm, const float* x, int n_tokens, const Forms& forms) const;

  // Norms and quantises tokens [begin, end), each while it lies in the L1 cache.
  void prepare(const Config& config, const NormWeights& norm, const float* x, int begin, int end,
               const Forms& forms, const Input& input) const;

 private:
  Buffer memory_;
  size_t n_tokens_ = 0, n_cols_ = 0;
};

}  // namespace russet
