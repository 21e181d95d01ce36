// Sampler: logits -> token.
//
// What a grammar does not allow is no candidate. Biases and bans come next, always. Then the steps, in an
// order that can be chosen; one whose option is at its default changes nothing. The token is drawn from what
// they leave. Temperature 0 takes the likeliest after penalties, the lowest id on a tie.
//
//   penalties    for each token in the window: a positive logit / repetition, a negative one * repetition
//                (Keskar et al., arXiv 1909.05858), then - presence - frequency * count where it was
//                generated (the formula of OpenAI's API)
//   dry          - multiplier * base^(length - allowed_length) for a token that would go on with a repeat of
//                that length, as llama.cpp has it
//   temperature  all logits / temperature
//   top_n_sigma  logits at most n standard deviations below the largest (Tang et al., arXiv 2411.07641)
//   top_k        the k likeliest
//   top_p        the fewest that together reach probability p (Holtzman et al., arXiv 1904.09751)
//   min_p        those at least p times as likely as the likeliest (Nguyen et al., arXiv 2407.01082)
//   typical_p    the fewest that reach p, those first whose surprise is nearest to the expected one
//                (Meister et al., arXiv 2202.00666)
//   xtc          with some probability all above a threshold but the least likely of them leave, as
//                llama.cpp has it
//   mirostat     those that surprise by at most mu bits; mu then moves so that the surprise of what is
//                drawn nears tau (version 2 of Basu et al., arXiv 2007.14966)
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/wanted.h"
#include "sampler/candidates.h"
#include "sampler/history.h"

namespace russet {

enum class Step : int {
  penalties,
  dry,
  temperature,
  top_n_sigma,
  top_k,
  top_p,
  min_p,
  typical_p,
  xtc,
  mirostat
};
inline constexpr const char* kStepNames[] = {"penalties", "dry",   "temperature", "top_n_sigma", "top_k",
                                             "top_p",     "min_p", "typical_p",   "xtc",         "mirostat"};

std::vector<Step> all_steps();  // in the order above, which is the default

struct SamplingOptions {
  std::vector<Step> steps = all_steps();
  double temperature = 0;
  int top_k = 0;  // 0: all
  double top_p = 1, min_p = 0, typical_p = 1;
  double top_n_sigma = 0;  // 0: off
  double xtc_probability = 0, xtc_threshold = 0.1;
  double mirostat_tau = 0, mirostat_eta = 0.1;  // tau in bits, 0: off

  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int penalty_window = 0;  // the last tokens they look at, 0: all
  double dry_multiplier = 0, dry_base = 1.75;
  int dry_allowed_length = 2, dry_window = 0;
  std::vector<int32_t> dry_breakers;

  std::vector<std::pair<int32_t, float>> logit_bias;  // added; -infinity bans
  std::vector<std::pair<std::vector<int32_t>, float>>
      sequence_bias;                            // added where the last would complete it
  std::vector<std::vector<int32_t>> bad_words;  // what must not be completed
  int no_repeat_ngram_size = 0;  // no run of so many tokens comes twice in text and prompt, 0: off
  int min_tokens = 0;            // before so many are generated no end comes
  std::vector<int32_t> ends;
};

class Sampler {
 public:
  // The prompt is where the text so far begins, which penalties and bans look at.
  Sampler(SamplingOptions options, uint64_t seed, std::span<const int32_t> prompt = {});

  // Tokens that may come, a bit each: see Candidates::keep_allowed(). No words at all: every one may.
  using Allowed = std::span<const uint32_t>;

  // Draws a token, which is not part of the history until append() says so. Throws Error{numerical} where a
  // logit is NaN or infinity or all are -infinity, Error{usage} where every token is banned.
  int32_t sample(std::span<const float> logits, Allowed allowed = {});

  // What sample() would draw from: p [logits.size()]. Where xtc is a step its dice are thrown.
  void probabilities(std::span<const float> logits, double* p, Allowed allowed = {});

  // The n tokens with the best scores, best first, lower ids first on a tie; fewer where no more may come. A
  // score is the logarithm of the model's own probability, which biases, bans, penalties and dry have changed
  // as they change logits. Throws as sample() does.
  struct Scored {
    int32_t token;
    double score, logprob;  // logprob: before anything changed it
  };
  std::vector<Scored> best(std::span<const float> logits, int n, Allowed allowed = {});

  // Which logits the next sample() has a use for: with minus infinity in place of all others it draws the
  // same. All of them, where its first cut is not top_k or min_p: what others keep is up to every logit.
  Wanted wanted(Allowed allowed = {});

  void append(int32_t token);  // one that was generated

 private:
  Candidates& candidates_of(std::span<const float> logits, Allowed allowed);
  void take(Step step, Candidates& candidates);
  std::vector<int32_t> changed();
  // Logits: Candidates, or what only looks at which tokens they change.
  template <typename Logits>
  void ban(Logits& logits);
  template <typename Logits>
  void penalise(Logits& logits, double zero = 0) const;  // zero: the logit that counts as 0
  template <typename Logits>
  void penalise_repeats(Logits& logits);
  bool is_greedy() const { return options_.temperature <= 0; }
  double uniform();  // in [0, 1)

  SamplingOptions options_;
  History history_;
  uint64_t state_;
  double mu_;  // mirostat's, in bits
};

// tokens[i] = samplers[i]->sample(row i of logits [n_rows, vocab_size]); the samplers are n_rows different
// ones.
void sample_rows(std::span<Sampler* const> samplers, const float* logits, int vocab_size, int32_t* tokens,
                 int n_threads);

// Natural logarithms of the model's own probabilities, over the whole vocabulary and before any step: of a
// token, and of the n_top likeliest, likeliest first, lower ids first on a tie.
struct Logprobs {
  double chosen;
  std::vector<std::pair<int32_t, double>> top;
};
Logprobs logprobs(std::span<const float> logits, int32_t token, int n_top);

}  // namespace russet
