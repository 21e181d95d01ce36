#include "model/places.h"

#include <cmath>

namespace russet {

// 1 / base^(2 i / rotary_dim), with the base grown for texts longer than the model was trained on: dynamic
// NTK (bloc97 and emozilla, 2023), as transformers computes it.
static float dynamic_inv_freq(const Rope& r, int length, size_t i) {
  const double rotary_dim = double(2 * r.inv_freq.size()), factor = double(r.dynamic_factor);
  const double growth = factor * length / r.original_ctx - (factor - 1);
  const double base = double(r.theta) * std::pow(growth, rotary_dim / (rotary_dim - 2));
  return float(1 / std::pow(base, double(2 * i) / rotary_dim));
}

static float inv_freq(const Rope& r, int length, size_t i) {
  if (length > r.original_ctx) {
    if (!r.long_inv_freq.empty()) return r.long_inv_freq[i];
    if (r.dynamic_factor > 0) return dynamic_inv_freq(r, length, i);
  }
  return r.inv_freq[i];
}

static float rope_scale(const Rope& r, int length) {
  return !r.long_inv_freq.empty() && length > r.original_ctx ? r.long_scale : r.scale;
}

// Angles are rounded to float before their cosine is taken, as the models were trained: at position 100,000
// the exact product would differ in the third digit.
void Places::choose(const Config& config, const Batch& batch) {
  pos_.resize(size_t(batch.n_tokens()));
  for (const Segment& s : batch.segments)
    for (int i = 0; i < s.n_tokens; ++i) pos_[size_t(s.begin + i)] = s.pos + i;
  cos_.resize(config.ropes.size());
  sin_.resize(config.ropes.size());
  for (size_t r = 0; r < config.ropes.size(); ++r) {
    const Rope& rope = config.ropes[r];
    const size_t half = rope.inv_freq.size();
    cos_[r].resize(pos_.size() * half);
    sin_[r].resize(pos_.size() * half);
    std::vector<float> frequencies(half);
    for (const Segment& s : batch.segments) {
      for (size_t i = 0; i < half; ++i) frequencies[i] = inv_freq(rope, s.rope_length, i);
      const double scale = double(rope_scale(rope, s.rope_length));
      for (size_t t = size_t(s.begin); t < size_t(s.begin + s.n_tokens); ++t)
        for (size_t i = 0; i < half; ++i) {
          const double angle = double(float(pos_[t]) * frequencies[i]);
          cos_[r][t * half + i] = float(std::cos(angle) * scale);
          sin_[r][t * half + i] = float(std::sin(angle) * scale);
        }
    }
  }
}

}  // namespace russet
