#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"

namespace russet {

// splitmix64 (Steele, Lea, Flood, OOPSLA 2014): the same draws for a seed on every platform.
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return double(z >> 11) * 0x1p-53;
}

static int likeliest(std::span<const float> logits) {
  int best = -1;
  float top = -std::numeric_limits<float>::infinity();
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > top) top = logits[i], best = int(i);
  }
  check(!has_nan && best >= 0 && std::isfinite(top), ErrorKind::numerical,
        "logits: expected numbers, got NaN or infinity; a weight may be damaged");
  return best;
}

std::span<const float> Sampler::penalise(std::span<const float> logits, std::span<const int32_t> seen) {
  penalised_.assign(logits.begin(), logits.end());
  for (const int32_t token : seen) {
    if (token < 0 || size_t(token) >= logits.size()) continue;
    const float logit = logits[size_t(token)], penalty = options_.repetition_penalty;
    penalised_[size_t(token)] = logit > 0 ? logit / penalty : logit * penalty;
  }
  return penalised_;
}

int Sampler::sample(std::span<const float> logits, std::span<const int32_t> seen) {
  if (options_.repetition_penalty != 1) logits = penalise(logits, seen);
  const int best = likeliest(logits);
  if (options_.temperature <= 0) return best;

  const float top = logits[size_t(best)];
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] > -std::numeric_limits<float>::infinity()) candidates_.push_back({int(i), logits[i]});

  // Ties in order of id, and only full sorts of what is kept, so that a cut through equal weights and the
  // order in which the draw walks are the same with every standard library.
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
  };
  if (options_.top_k > 0 && size_t(options_.top_k) < candidates_.size()) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), likelier);
    candidates_.resize(size_t(options_.top_k));
  }
  double total = 0;
  for (Candidate& c : candidates_)
    total += double(c.weight = float(std::exp(double(c.weight - top) / double(options_.temperature))));

  // The likeliest has weight 1, so min_p is a threshold on the weights as they are.
  if (options_.top_p < 1) {
    // Sorting everything is avoided: the few likeliest nearly always hold top_p of the whole.
    size_t n_sorted = 0, n_kept = 0;
    double kept = 0;
    while (n_kept < candidates_.size() && (n_kept == 0 || kept < double(options_.top_p) * total)) {
      if (n_kept == n_sorted) {
        n_sorted = std::min(candidates_.size(), std::max<size_t>(64, 4 * n_sorted));
        std::partial_sort(candidates_.begin() + std::ptrdiff_t(n_kept),
                          candidates_.begin() + std::ptrdiff_t(n_sorted), candidates_.end(), likelier);
      }
      kept += double(candidates_[n_kept++].weight);
    }
    candidates_.resize(n_kept);
  }
  if (options_.min_p > 0)
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < options_.min_p; });

  total = 0;
  for (const Candidate& c : candidates_) total += double(c.weight);
  double draw = uniform() * total;
  for (const Candidate& c : candidates_)
    if ((draw -= double(c.weight)) < 0) return c.token;
  return candidates_.back().token;
}

}  // namespace russet
