// Sampler: logits -> token.
//
// In this order, each step optional: lower the logits of tokens seen so far by repetition_penalty (positive
// ones divided, negative ones multiplied; Keskar et al., arXiv 1909.05858); keep the top_k likeliest, keep
// the smallest set whose probability reaches top_p (Holtzman et al., arXiv 1904.09751), keep those at least
// min_p times as likely as the likeliest (Nguyen et al., arXiv 2407.01082), all after the temperature; then
// draw. Temperature 0 takes the likeliest, the lowest id on a tie.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace russet {

struct SamplingOptions {
  float temperature = 0;
  int top_k = 0;  // 0: all
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1;
};

class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t seed) : options_(options), state_(seed) {}

  // Throws Error{numerical} where a logit is NaN or all are -inf. `seen`: the text so far, for the penalty.
  int sample(std::span<const float> logits, std::span<const int32_t> seen = {});

 private:
  struct Candidate {
    int token;
    float weight;  // logit, then probability up to a factor
  };
  std::span<const float> penalise(std::span<const float> logits, std::span<const int32_t> seen);
  double uniform();  // in [0, 1)

  SamplingOptions options_;
  uint64_t state_;
  std::vector<Candidate> candidates_;
  std::vector<float> penalised_;
};

}  // namespace russet
