// Places: where the tokens of a batch stand: their positions, and the cosines and sines of the angles that
// every rope turns them by. Computed by the host on every device, so that all turn by the same angles.
#pragma once
#include <vector>

#include "model/batch.h"
#include "model/config.h"

namespace russet {

class Places {
 public:
  void choose(const Config& config, const Batch& batch);

  int pos(size_t token) const { return pos_[token]; }
  const std::vector<int>& pos() const { return pos_; }
  // [n_tokens, rotary_dim / 2] of config.ropes[rope]
  const float* cos(int rope) const { return cos_[size_t(rope)].data(); }
  const float* sin(int rope) const { return sin_[size_t(rope)].data(); }

 private:
  std::vector<int> pos_;
  std::vector<std::vector<float>> cos_, sin_;
};

}  // namespace russet
