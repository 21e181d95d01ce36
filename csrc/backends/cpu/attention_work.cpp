#include "backends/cpu/attention_work.h"

#include <algorithm>
#include <utility>

namespace russet {

// With as many calls as this the last one that a thread takes is a small part of its work.
static constexpr int kCallsPerThread = 4;

static size_t partial_floats(const AttentionArgs& a) {
  return PartialSoftmax::n_floats(a.n_tokens * a.n_heads, a.format.head_dim);
}

// Keys that the call reads, once for every row.
static long long cost_of(const AttentionArgs& a) {
  const int n_keys = a.pos + a.n_tokens,
            seen = a.window > 0 ? std::min(n_keys, a.window + a.n_sinks) : n_keys;
  return (long long)seen * a.n_tokens * a.n_heads;
}

AttentionWork::AttentionWork(AttentionFn& attend, std::vector<AttentionArgs> calls, int n_threads)
    : attend_(attend), n_left_(calls.size()) {
  const bool by_runs = n_threads > 1 && int(calls.size()) < kCallsPerThread * n_threads;
  for (size_t c = 0; c < calls.size(); ++c) {
    Call call{calls[c]};
    const size_t first = parts_.size();
    for (int run = 0; by_runs && run < attention_runs(call.args); ++run)
      if (sees_run(call.args, run)) parts_.push_back({c, run, int(parts_.size() - first), 0});
    call.n_runs = std::max(int(parts_.size() - first), 1);
    if (call.n_runs > 1) {
      call.partials = n_partial_floats_;
      n_partial_floats_ += size_t(call.n_runs) * partial_floats(call.args);
    } else {
      parts_.resize(first);
      parts_.push_back({c, 0, 0, 0});
    }
    for (size_t p = first; p < parts_.size(); ++p) parts_[p].cost = cost_of(call.args) / call.n_runs;
    n_left_[c].store(call.n_runs, std::memory_order_relaxed);
    calls_.push_back(call);
  }
  std::stable_sort(parts_.begin(), parts_.end(),
                   [](const Part& a, const Part& b) { return a.cost > b.cost; });
}

void AttentionWork::run(float* scratch, float* partials) {
  for (size_t p; (p = next_.fetch_add(1, std::memory_order_relaxed)) < parts_.size();)
    run(parts_[p], scratch, partials);
}

void AttentionWork::run(const Part& part, float* scratch, float* partials) {
  const Call& call = calls_[part.call];
  AttentionArgs args = call.args;
  args.scratch = scratch;
  if (call.n_runs == 1) return attention(attend_, args);
  float* const own = partials + call.partials;
  float* const memory = own + size_t(part.place) * partial_floats(args);
  attend_(args, part.run, PartialSoftmax::at(memory, args.n_tokens * args.n_heads, args.format.head_dim));
  if (n_left_[part.call].fetch_sub(1, std::memory_order_acq_rel) == 1) merge_runs(args, own, call.n_runs);
}

}  // namespace russet
