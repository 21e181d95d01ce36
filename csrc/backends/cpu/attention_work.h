// AttentionWork: calls of attention, in parts that the threads of a region take one by one, the costliest
// first: causal calls differ in length, and so all threads are done at about the same time.
//
// A part is a call. Where calls are too few to keep all threads busy a part is one run of a call's keys, and
// who finishes the last of these merges them; the bits are the same.
#pragma once
#include <atomic>
#include <vector>

#include "kernels/attention/attention.h"

namespace russet {

class AttentionWork {
 public:
  AttentionWork(AttentionFn& attend, std::vector<AttentionArgs> calls, int n_threads);

  size_t n_partial_floats() const { return n_partial_floats_; }
  // Every thread calls it, with kAttentionScratchFloats of its own and n_partial_floats() that all share.
  void run(float* scratch, float* partials);

 private:
  struct Call {
    AttentionArgs args;
    int n_runs = 1;       // parts it is cut into
    size_t partials = 0;  // where those of its runs begin
  };
  struct Part {
    size_t call;
    int run;    // of the keys
    int place;  // among the call's partials
    long long cost;
  };

  void run(const Part& part, float* scratch, float* partials);

  AttentionFn& attend_;
  std::vector<Call> calls_;
  std::vector<Part> parts_;
  std::vector<std::atomic<int>> n_left_;  // runs of each call
  std::atomic<size_t> next_{0};           // part
  size_t n_partial_floats_ = 0;
};

}  // namespace russet
