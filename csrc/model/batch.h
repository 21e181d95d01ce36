// Batch: the tokens of one forward pass, of one sequence or of several of different lengths, one after the
// other.
#pragma once
#include <cstdint>
#include <span>

namespace russet {

class KvCache;
struct Wanted;

// Consecutive tokens of one sequence. They continue its cache: the first has position cache->n_tokens().
struct Segment {
  KvCache* cache;
  int begin, n_tokens;  // which of the batch's tokens
  int pos;              // position of the first
  int rope_length;      // length of text the rope is chosen for: see Rope in config.h
};

struct Batch {
  std::span<const int32_t> tokens;
  std::span<const Segment> segments;
  std::span<const int> logit_rows;  // which of the tokens want logits, ascending
  // [n_tokens, dim] in the host's memory: what layers before the model's own, computed elsewhere, have made
  // of the tokens; null: there are none.
  const float* x = nullptr;
  // Of a single row of logits, those its sampler has a use for; null: all. A device may give more.
  const Wanted* wanted = nullptr;

  int n_tokens() const { return int(tokens.size()); }
};

}  // namespace russet
