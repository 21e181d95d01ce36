// Greedy: the likeliest tokens of one sequence, one after the other, with two passes in flight: while the
// host looks at a token, the device is computing the next one from it. From the second token on, and as long
// as no other sequence's passes come between.
#pragma once
#include "backends/metal/metal_ops.h"

namespace russet::metal {

class Greedy {
 public:
  // Appends `token` to the cache and returns the likeliest token after it; -1: a logit is NaN. Where it is
  // the token returned last, and the cache stands where it stood, the pass is under way already. Throws as
  // forward() does.
  int32_t next(const Config& config, const Weights& weights, MetalOps& ops, KvCache& cache, int32_t token,
               int rope_length);

 private:
  MetalOps::Likeliest ahead_;  // a pass that was begun before it was asked for,
  int pos_ = 0;                // at this position,
  int32_t token_ = 0;          // for this token
  uint64_t last_pass_ = 0;     // of the device when this sequence had its last token
};

}  // namespace russet::metal
