#include "sampler/candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "kernels/sum_exp/sum_exp.h"

namespace russet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t* ints(const Buffer& buffer) {
  return reinterpret_cast<int32_t*>(buffer.bytes());
}

// Integers in the order of the floats; -0 is 0.
uint32_t ordered(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

float from_ordered(uint32_t key) {
  return std::bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The first of the weights with which their sum exceeds `left`, from which those before it are taken; where
// rounding leaves none, the last that is not 0.
int walk(const float* weights, int n, double& left) {
  int last = 0;
  for (int i = 0; i < n; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    if (left < double(weights[i])) return i;
    left -= double(weights[i]);
  }
  return last;
}

}  // namespace

void Candidates::begin(std::span<const float> logits) {
  check(!logits.empty(), ErrorKind::numerical, "logits: expected numbers, got none");
  row_ = logits;
  scale_ = 1;
  changed_ = weighed_ = false;
  n_few_ = -1;
  n_copies_ = 0;
  const size_t n_bytes = size_t(n_row_blocks()) * sizeof(float);
  for (Buffer* buffer : {&copies_, &ids_, &logits_, &weights_, &keys_, &cut_keys_, &cut_masses_})
    buffer->reserve(n_bytes * kBlockFloats);
  for (Buffer* buffer : {&copy_of_, &maxima_, &sums_}) buffer->reserve(n_bytes);

  block_max({row_.data(), int(row_.size()), maxima_.floats()});
  std::fill_n(ints(copy_of_), n_row_blocks(), -1);
  max_ = *std::max_element(maxima_.floats(), maxima_.floats() + n_row_blocks());
  check(std::isfinite(max_), ErrorKind::numerical,
        "logits: expected numbers, got NaN or infinity; a weight may be damaged");
}

void Candidates::keep_allowed(std::span<const uint32_t> bits) {
  int32_t* ids = ints(ids_);
  float* logits = logits_.floats();
  int n = 0;
  for (size_t word = 0; word < std::min(bits.size(), (row_.size() + 31) / 32); ++word) {
    for (uint32_t left = bits[word]; left != 0; left &= left - 1) {
      const size_t token = word * 32 + size_t(std::countr_zero(left));
      if (token >= row_.size()) break;
      ids[n] = int32_t(token);
      logits[n++] = row_[token];
    }
  }
  check(n > 0, ErrorKind::usage, "logits: none of the model's tokens is allowed");
  n_few_ = n;
  changed_ = true;  // the largest may be gone
}

const float* Candidates::block(int b) const {
  const int copy = ints(copy_of_)[b];
  return copy < 0 ? row_.data() + size_t(b) * kBlockFloats : copies_.floats() + size_t(copy) * kBlockFloats;
}

int Candidates::block_size(int b) const {
  return std::min(kBlockFloats, int(row_.size()) - b * kBlockFloats);
}

// Where the token's logit is stored, to be changed; null where it is no candidate.
float* Candidates::find(int32_t token) {
  if (is_few()) {
    const int32_t* ids = ints(ids_);
    const int32_t* found = std::lower_bound(ids, ids + n_few_, token);
    return found == ids + n_few_ || *found != token ? nullptr : logits_.floats() + (found - ids);
  }
  if (token < 0 || size_t(token) >= row_.size()) return nullptr;
  const int b = token / kBlockFloats;
  int32_t& copy = ints(copy_of_)[b];
  if (copy < 0) {
    std::memcpy(copies_.floats() + size_t(n_copies_) * kBlockFloats, block(b),
                size_t(block_size(b)) * sizeof(float));
    copy = n_copies_++;
  }
  return copies_.floats() + size_t(copy) * kBlockFloats + token % kBlockFloats;
}

// Makes maxima and max true again after changes.
void Candidates::settle() {
  if (!changed_) return;
  changed_ = weighed_ = false;
  if (is_few()) {
    max_ = *std::max_element(logits_.floats(), logits_.floats() + n_few_);
  } else {
    for (int b = 0; b < n_row_blocks(); ++b)
      if (ints(copy_of_)[b] >= 0) block_max({block(b), block_size(b), maxima_.floats() + b});
    max_ = *std::max_element(maxima_.floats(), maxima_.floats() + n_row_blocks());
  }
  check(max_ < kInfinity, ErrorKind::numerical, "logits: penalties or biases made one infinite or NaN");
  check(max_ > -kInfinity, ErrorKind::usage,
        "logits: every token that could come is banned, by logit_bias, bad_words, min_tokens or a grammar");
}

// Makes sums true, weights too where they are few, and gives the weights' total.
double Candidates::weigh() {
  settle();
  if (weighed_) return total_;
  const int n = is_few() ? n_few_ : int(row_.size());
  const float scale = float(scale_);
  float* sums = sums_.floats();
  if (is_few()) {
    sum_exp({logits_.floats(), n, max_, scale, sums, weights_.floats()});
  } else {
    sum_exp({row_.data(), n, max_, scale, sums, nullptr});
    for (int b = 0; b < n_row_blocks(); ++b)
      if (ints(copy_of_)[b] >= 0) sum_exp({block(b), block_size(b), max_, scale, sums + b, nullptr});
  }
  total_ = 0;
  for (int b = 0; b < n_blocks(n); ++b) total_ += double(sums[b]);
  weighed_ = true;
  return total_;
}

// The logit, as stored, of a weight.
double Candidates::stored_logit(double weight) const {
  return double(max_) + std::log(weight) / scale_;
}

// Where the masses of keys (null: 1 each), the largest first, reach the target: the key they reach it with,
// and the mass of those before it. Four rounds, one for each digit of eight bits; after a round only the keys
// with its digit matter.
Candidates::Cut Candidates::find_cut(const float* keys, const float* masses, int n, double target) {
  auto* left = reinterpret_cast<uint32_t*>(cut_keys_.bytes());
  float* mass = cut_masses_.floats();
  for (int i = 0; i < n; ++i) left[i] = ordered(keys[i]);
  for (int i = 0; i < n; ++i) mass[i] = masses ? masses[i] : 1.0f;
  Cut cut;
  for (int shift = 24; shift >= 0; shift -= 8) {
    double mass_of[4][256] = {};  // four, because neighbours often have the same digit and would wait in turn
    for (int i = 0; i < n; ++i) mass_of[i & 3][left[i] >> shift & 255] += double(mass[i]);
    const auto of_digit = [&](uint32_t d) {
      return mass_of[0][d] + mass_of[1][d] + mass_of[2][d] + mass_of[3][d];
    };
    uint32_t digit = 255;
    for (; digit > 0 && cut.above + of_digit(digit) < target; --digit) cut.above += of_digit(digit);
    cut.key = cut.key << 8 | digit;
    int n_left = 0;
    for (int i = 0; i < n; ++i) {
      left[n_left] = left[i];
      mass[n_left] = mass[i];
      n_left += (left[i] >> shift & 255) == digit;
    }
    n = n_left;
  }
  return cut;
}

// Drops logits, as stored, below `least`, and all of -infinity; what is left is few, or is called so.
void Candidates::forget_below(double least) {
  settle();
  least = std::min(std::max(least, double(-std::numeric_limits<float>::max())), double(max_));
  if (is_few()) return filter([&](int i) { return double(logits_.floats()[i]) >= least; });
  int32_t* ids = ints(ids_);
  float* logits = logits_.floats();
  int n = 0;
  for (int b = 0; b < n_row_blocks(); ++b) {
    if (double(maxima_.floats()[b]) < least) continue;
    const float* x = block(b);
    for (int i = 0; i < block_size(b); ++i) {
      ids[n] = b * kBlockFloats + i;
      logits[n] = x[i];
      n += double(x[i]) >= least;
    }
  }
  n_few_ = n;
  weighed_ = false;
}

// keep(i) is asked of every one of the few, in order of id.
template <typename Keep>
void Candidates::filter(Keep keep) {
  int n = 0;
  for (int i = 0; i < n_few_; ++i) {
    if (!keep(i)) continue;
    ints(ids_)[n] = ints(ids_)[i];
    logits_.floats()[n++] = logits_.floats()[i];
  }
  changed_ |= n < n_few_;  // the largest may be gone
  n_few_ = n;
}

// Of the few, those with the largest keys until their masses (null: 1 each) reach the target.
void Candidates::keep_best(const float* keys, const float* masses, double target) {
  const Cut cut = find_cut(keys, masses, n_few_, target);
  double kept = cut.above;
  filter([&](int i) {
    const uint32_t key = ordered(keys[i]);
    if (key != cut.key) return key > cut.key;
    if (kept >= target) return false;
    kept += masses ? double(masses[i]) : 1.0;
    return true;
  });
}

void Candidates::divide(double temperature) {
  scale_ = std::clamp(scale_ / temperature, double(std::numeric_limits<float>::min()),
                      double(std::numeric_limits<float>::max()));
  weighed_ = false;
}

void Candidates::keep_top_k(int k) {
  settle();
  if (!is_few()) {
    // k blocks have a logit at least as large as the k-th largest of their maxima.
    const bool is_bounded = k <= n_row_blocks();
    forget_below(is_bounded ? from_ordered(find_cut(maxima_.floats(), nullptr, n_row_blocks(), k).key)
                            : -std::numeric_limits<float>::max());
  }
  if (k < n_few_) keep_best(logits_.floats(), nullptr, k);
}

void Candidates::keep_top_p(double p) {
  const double total = weigh();
  // Below this weight even all tokens together hold less than 1 - p; a hundredth for the rounding of sums.
  const double n = is_few() ? double(n_few_) : double(row_.size());
  forget_below(stored_logit(0.99 * (1 - p) * total / n));
  weigh();
  keep_best(weights_.floats(), weights_.floats(), p * total);
}

void Candidates::keep_min_p(double p) {
  settle();
  forget_below(stored_logit(p));
}

void Candidates::keep_top_n_sigma(double n) {
  settle();
  double count = 0, sum = 0, squares = 0;  // of the distances below the largest, which are never far from it
  const auto add = [&](const float* x, int size) {
    for (int i = 0; i < size; ++i) {
      if (x[i] == -kInfinity) continue;
      const double below = double(max_) - double(x[i]);
      count += 1;
      sum += below;
      squares += below * below;
    }
  };
  if (is_few()) {
    add(logits_.floats(), n_few_);
  } else {
    for (int b = 0; b < n_row_blocks(); ++b) add(block(b), block_size(b));
  }
  const double mean = sum / count;
  forget_below(double(max_) - n * std::sqrt(std::max(0.0, squares / count - mean * mean)));
}

void Candidates::keep_typical(double p) {
  forget_below(-std::numeric_limits<float>::max());
  const double total = weigh(), log_total = std::log(total);
  const auto surprise = [&](int i) {
    return log_total + (double(max_) - double(logits_.floats()[i])) * scale_;
  };
  double expected = 0;
  for (int i = 0; i < n_few_; ++i)
    if (const float weight = weights_.floats()[i]; weight > 0)
      expected += double(weight) / total * surprise(i);
  for (int i = 0; i < n_few_; ++i) keys_.floats()[i] = -float(std::abs(surprise(i) - expected));
  keep_best(keys_.floats(), weights_.floats(), p * total);
}

void Candidates::keep_surprise(double bits) {
  const double total = weigh();
  forget_below(stored_logit(std::exp2(-bits) * total));
}

void Candidates::exclude_top(double threshold) {
  forget_below(-std::numeric_limits<float>::max());
  const double limit = threshold * weigh();
  const float* weights = weights_.floats();
  int n_above = 0, least = -1;
  for (int i = 0; i < n_few_; ++i) {
    if (double(weights[i]) < limit) continue;
    if (n_above++ == 0 || weights[i] <= weights[least]) least = i;
  }
  if (n_above > 1) filter([&](int i) { return i == least || double(weights[i]) < limit; });
}

int32_t Candidates::likeliest() {
  settle();
  const auto first = [&](const float* x, int n) { return int(std::find(x, x + n, max_) - x); };
  if (is_few()) return ints(ids_)[first(logits_.floats(), n_few_)];
  const int b = first(maxima_.floats(), n_row_blocks());
  return b * kBlockFloats + first(block(b), block_size(b));
}

Candidates::Token Candidates::draw(double uniform) {
  double left = uniform * weigh();
  const float* weights = weights_.floats();
  if (is_few()) {
    const int i = walk(weights, n_few_, left);
    return {ints(ids_)[i], double(weights[i]) / total_};
  }
  const int b = walk(sums_.floats(), n_row_blocks(), left);
  float sum;
  sum_exp({block(b), block_size(b), max_, float(scale_), &sum, weights_.floats()});
  const int i = walk(weights, block_size(b), left);
  return {b * kBlockFloats + i, double(weights[i]) / total_};
}

void Candidates::probabilities(double* p) {
  const double total = weigh();
  const float* weights = weights_.floats();
  if (is_few()) {
    std::fill_n(p, row_.size(), 0.0);
    for (int i = 0; i < n_few_; ++i) p[ints(ids_)[i]] = double(weights[i]) / total;
    return;
  }
  for (int b = 0; b < n_row_blocks(); ++b) {
    float sum;
    sum_exp({block(b), block_size(b), max_, float(scale_), &sum, weights_.floats()});
    for (int i = 0; i < block_size(b); ++i) p[b * kBlockFloats + i] = double(weights[i]) / total;
  }
}

double Candidates::log_total() {
  const double total = weigh();
  return double(max_) * scale_ + std::log(total);
}

double Candidates::logit_of(int32_t token) {
  const float* logit = find(token);
  return logit ? double(*logit) * scale_ : -double(kInfinity);
}

std::span<const int32_t> Candidates::ids() const {
  return {ints(ids_), size_t(std::max(n_few_, 0))};
}

}  // namespace russet
