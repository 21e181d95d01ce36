// Candidates: the tokens that the next one is drawn from, and the rules that make them fewer.
//
// At first they are the whole vocabulary, read where the model left its logits: never copied, never sorted.
// It lies in blocks, and of each the largest logit is known, so that a rule which keeps the likely ones reads
// few of them again. What it leaves lies in arrays of its own, still in order of id. A block in which a
// single logit changes is copied first: the row itself stays as it is.
//
// A rule's cut is a threshold, searched for digit by digit (after flashinfer.ai/2025/03/10/sampling.html,
// which searches by rejection). Where equal tokens lie on the cut the lower ids stay. Every rule leaves at
// least one token. Once the buffers have grown to a vocabulary's size nothing is allocated.
#pragma once
#include <cstdint>
#include <span>

#include "core/buffer.h"
#include "kernels/block_max/block_max.h"

namespace russet {

class Candidates {
 public:
  // The whole of a row of logits, which must stay where it is. -infinity is a token that never comes. Throws
  // Error{numerical} where a logit is NaN or infinity, or none is finite.
  void begin(std::span<const float> logits);

  // Only those whose bit is set, in words of 32 tokens each, lowest bit first; those beyond the words leave.
  // Right after begin(). Throws Error{usage} where none is left.
  void keep_allowed(std::span<const uint32_t> bits);

  // logit = changed(logit), where the token is a candidate
  template <typename F>
  void change(int32_t token, F changed) {
    if (float* logit = find(token)) {
      *logit = float(double(changed(float(double(*logit) * scale_))) / scale_);
      changed_ = true;
    }
  }
  void divide(double temperature);  // all logits

  void keep_top_k(int k);              // the k likeliest
  void keep_top_p(double p);           // the fewest that together reach probability p
  void keep_min_p(double p);           // those at least p times as likely as the likeliest
  void keep_top_n_sigma(double n);     // logits at most n standard deviations below the largest
  void keep_typical(double p);         // the fewest of nearly expected surprise that together reach p
  void keep_surprise(double bits);     // those that surprise by at most so many bits
  void exclude_top(double threshold);  // all at least so probable but the least likely of them

  struct Token {
    int32_t id;
    double p;  // its probability among the candidates
  };
  int32_t likeliest();            // the lowest id on a tie
  Token draw(double uniform);     // where a number in [0, 1) leads through the probabilities, in order of id
  void probabilities(double* p);  // of every token of the row

  double log_total();                    // logarithm of the sum of e^logit
  double logit_of(int32_t token);        // -infinity where it is no candidate
  std::span<const int32_t> ids() const;  // of those a rule has left

 private:
  bool is_few() const { return n_few_ >= 0; }
  int n_row_blocks() const { return n_blocks(int(row_.size())); }
  const float* block(int b) const;
  int block_size(int b) const;
  float* find(int32_t token);
  void settle();
  double weigh();
  double stored_logit(double weight) const;
  void forget_below(double least);
  struct Cut {
    uint32_t key = 0;  // of the float, see ordered()
    double above = 0;
  };
  Cut find_cut(const float* keys, const float* masses, int n, double target);
  void keep_best(const float* keys, const float* masses, double target);
  template <typename Keep>
  void filter(Keep keep);

  std::span<const float> row_;
  double scale_ = 1;  // of all logits as they are stored: 1 / temperature
  float max_ = 0;     // the largest, as stored
  double total_ = 0;  // sum of all weights, e^((logit - max) * scale)
  bool changed_ = false, weighed_ = false;

  // The whole vocabulary, until a rule has made it few
  int n_copies_ = 0;
  Buffer copy_of_;  // [n_blocks] int32: which copy stands for a block, -1 for none
  Buffer copies_;   // [n_copies, kBlockFloats]
  Buffer maxima_;   // [n_blocks]
  Buffer sums_;     // [n_blocks] of weights

  // The few
  int n_few_ = -1;  // -1: still the whole vocabulary
  Buffer ids_, logits_, weights_, keys_;

  Buffer cut_keys_, cut_masses_;  // what find_cut works on
};

}  // namespace russet
