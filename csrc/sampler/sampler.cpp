#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "core/parallel.h"

namespace russet {
namespace {

// From so many on a search for a few logits is not worth it.
constexpr int kMostWanted = 1024;

// A margin is wider by this than exact arithmetic asks for, since the cut is made in floats.
constexpr double kRounding = 1e-5;

constexpr float kBanned = -std::numeric_limits<float>::infinity();

// Every thread has one: it is needed while a token is drawn, and as large as a few rows of logits.
Candidates& scratch() {
  static thread_local Candidates candidates;
  return candidates;
}

// In place of Candidates where only the tokens matter.
struct ChangedTokens {
  std::vector<int32_t> ids;
  void change(int32_t token, const auto&) { ids.push_back(token); }
};

}  // namespace

std::vector<Step> all_steps() {
  std::vector<Step> steps;
  for (size_t i = 0; i < std::size(kStepNames); ++i) steps.push_back(Step(i));
  return steps;
}

Sampler::Sampler(SamplingOptions options, uint64_t seed, std::span<const int32_t> prompt)
    : options_(std::move(options)),
      history_(prompt, options_.penalty_window),
      state_(seed),
      mu_(2 * options_.mirostat_tau) {
  std::sort(options_.dry_breakers.begin(), options_.dry_breakers.end());
}

// splitmix64 (Steele, Lea, Flood, OOPSLA 2014): the same draws for a seed on every platform.
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return double(z >> 11) * 0x1p-53;
}

void Sampler::append(int32_t token) {
  history_.append(token);
}

template <typename Logits>
void Sampler::ban(Logits& logits) {
  for (const auto& [token, bias] : options_.logit_bias)
    logits.change(token, [b = bias](float logit) { return logit + b; });
  for (const auto& [tokens, bias] : options_.sequence_bias)
    if (history_.ends_with({tokens.data(), tokens.size() - 1}))
      logits.change(tokens.back(), [b = bias](float logit) { return logit + b; });
  const auto banned = [](float) { return kBanned; };
  if (history_.n_generated() < options_.min_tokens)
    for (const int32_t end : options_.ends) logits.change(end, banned);
  for (const std::vector<int32_t>& word : options_.bad_words)
    if (history_.ends_with({word.data(), word.size() - 1})) logits.change(word.back(), banned);
  if (options_.no_repeat_ngram_size > 0)
    for (const int32_t token : history_.ends_of_known_runs(options_.no_repeat_ngram_size))
      logits.change(token, banned);
}

template <typename Logits>
void Sampler::penalise(Logits& logits, double zero) const {
  const float repetition = float(options_.repetition_penalty);
  const double presence = options_.presence_penalty, frequency = options_.frequency_penalty;
  if (repetition == 1 && presence == 0 && frequency == 0) return;
  for (const History::Count& count : history_.counts())
    logits.change(count.token, [&](float stored) {
      float logit = float(double(stored) - zero);
      logit = logit > 0 ? logit / repetition : logit * repetition;
      double changed = double(logit);
      if (count.n_generated > 0) changed = changed - presence - frequency * count.n_generated;
      return float(changed + zero);
    });
}

template <typename Logits>
void Sampler::penalise_repeats(Logits& logits) {
  const SamplingOptions& o = options_;
  if (o.dry_multiplier <= 0) return;
  for (const auto& [token, length] : history_.repeats(o.dry_allowed_length, o.dry_window, o.dry_breakers)) {
    const double penalty = o.dry_multiplier * std::pow(o.dry_base, length - o.dry_allowed_length);
    logits.change(token, [penalty](float logit) {
      return logit == kBanned
                 ? logit
                 : float(std::max(double(logit) - penalty, double(-std::numeric_limits<float>::max())));
    });
  }
}

// What the steps leave of a row.
Candidates& Sampler::candidates_of(std::span<const float> logits, Allowed allowed) {
  Candidates& candidates = scratch();
  candidates.begin(logits);
  if (!allowed.empty()) candidates.keep_allowed(allowed);
  ban(candidates);
  for (const Step step : options_.steps)
    if (!is_greedy() || step == Step::penalties || step == Step::dry) take(step, candidates);
  return candidates;
}

int32_t Sampler::sample(std::span<const float> logits, Allowed allowed) {
  Candidates& candidates = candidates_of(logits, allowed);
  if (is_greedy()) return candidates.likeliest();
  const Candidates::Token drawn = candidates.draw(uniform());
  mu_ -= options_.mirostat_eta * (-std::log2(drawn.p) - options_.mirostat_tau);
  return drawn.id;
}

void Sampler::probabilities(std::span<const float> logits, double* p, Allowed allowed) {
  Candidates& candidates = candidates_of(logits, allowed);
  if (!is_greedy()) return candidates.probabilities(p);
  std::fill_n(p, logits.size(), 0.0);
  p[candidates.likeliest()] = 1;
}

std::vector<Sampler::Scored> Sampler::best(std::span<const float> logits, int n, Allowed allowed) {
  Candidates& candidates = scratch();
  candidates.begin(logits);
  const double log_total = candidates.log_total();
  if (!allowed.empty()) candidates.keep_allowed(allowed);
  ban(candidates);
  for (const Step step : options_.steps) {
    if (step == Step::penalties) penalise(candidates, log_total);
    if (step == Step::dry) penalise_repeats(candidates);
  }
  candidates.keep_top_k(n);
  std::vector<Scored> found;
  for (const int32_t id : candidates.ids()) {
    const double score = candidates.logit_of(id) - log_total;
    if (score > double(kBanned)) found.push_back({id, score, double(logits[size_t(id)]) - log_total});
  }
  std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.score > b.score; });
  return found;
}

Wanted Sampler::wanted(Allowed allowed) {
  const SamplingOptions& o = options_;
  Wanted wanted{is_greedy() ? 1 : 0, 0, {}, {}};
  double temperature = 1;
  for (size_t i = 0; i < o.steps.size() && wanted.k == 0; ++i) {
    const Step step = o.steps[i];
    if (step == Step::temperature) temperature = o.temperature;
    if (step == Step::top_k) wanted.k = std::max(0, o.top_k);
    if (step == Step::min_p && o.min_p > 0) {
      wanted.k = 1;
      wanted.margin = std::max(0.0, -temperature * std::log(o.min_p)) * (1 + kRounding) + kRounding;
    }
    if ((step == Step::top_n_sigma && o.top_n_sigma > 0) || (step == Step::top_p && o.top_p < 1) ||
        (step == Step::typical_p && o.typical_p < 1) || (step == Step::xtc && o.xtc_probability > 0) ||
        (step == Step::mirostat && o.mirostat_tau > 0))
      return {};
  }
  if (wanted.k == 0 || wanted.k > kMostWanted) return {};
  // Changed logits are needed as they are. Each may have stood among the largest, and have left.
  wanted.ids = changed();
  if (wanted.ids.size() > kMostWanted) return {};
  wanted.k += int(wanted.ids.size());
  wanted.allowed.assign(allowed.begin(), allowed.end());
  return wanted;
}

// Tokens whose logits are not the model's, ascending.
std::vector<int32_t> Sampler::changed() {
  ChangedTokens tokens;
  ban(tokens);
  for (const Step step : options_.steps) {
    if (step == Step::penalties) penalise(tokens);
    if (step == Step::dry) penalise_repeats(tokens);
  }
  std::sort(tokens.ids.begin(), tokens.ids.end());
  tokens.ids.erase(std::unique(tokens.ids.begin(), tokens.ids.end()), tokens.ids.end());
  return tokens.ids;
}

void Sampler::take(Step step, Candidates& candidates) {
  const SamplingOptions& o = options_;
  switch (step) {
    case Step::penalties:
      penalise(candidates);
      break;
    case Step::dry:
      penalise_repeats(candidates);
      break;
    case Step::temperature:
      if (o.temperature != 1) candidates.divide(o.temperature);
      break;
    case Step::top_n_sigma:
      if (o.top_n_sigma > 0) candidates.keep_top_n_sigma(o.top_n_sigma);
      break;
    case Step::top_k:
      if (o.top_k > 0) candidates.keep_top_k(o.top_k);
      break;
    case Step::top_p:
      if (o.top_p < 1) candidates.keep_top_p(o.top_p);
      break;
    case Step::min_p:
      if (o.min_p > 0) candidates.keep_min_p(o.min_p);
      break;
    case Step::typical_p:
      if (o.typical_p < 1) candidates.keep_typical(o.typical_p);
      break;
    case Step::xtc:
      if (o.xtc_probability > 0 && uniform() < o.xtc_probability) candidates.exclude_top(o.xtc_threshold);
      break;
    case Step::mirostat:
      if (o.mirostat_tau > 0) candidates.keep_surprise(mu_);
      break;
  }
}

void sample_rows(std::span<Sampler* const> samplers, const float* logits, int vocab_size, int32_t* tokens,
                 int n_threads) {
  parallel(n_threads, [&](Share share) {
    const auto [begin, end] = share.of(int(samplers.size()));
    for (int row = begin; row < end; ++row) {
      const std::span<const float> of_row(logits + size_t(row) * size_t(vocab_size), size_t(vocab_size));
      tokens[row] = samplers[size_t(row)]->sample(of_row);
    }
  });
}

Logprobs logprobs(std::span<const float> logits, int32_t token, int n_top) {
  Candidates& candidates = scratch();
  candidates.begin(logits);
  const double log_total = candidates.log_total();
  Logprobs found{candidates.logit_of(token) - log_total, {}};
  if (n_top == 0) return found;
  candidates.keep_top_k(n_top);
  for (const int32_t id : candidates.ids()) found.top.emplace_back(id, candidates.logit_of(id) - log_total);
  std::stable_sort(found.top.begin(), found.top.end(), [](auto& a, auto& b) { return a.second > b.second; });
  return found;
}

}  // namespace russet
