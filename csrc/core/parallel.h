// The one thread pool. A region runs the same function on every thread and ends when all have returned.
#pragma once
#include <functional>

namespace russet {

struct Share {
  int thread, n_threads;

  // This thread's part of [0, n), cut at multiples of `step`; parts differ by at most one step.
  struct Range {
    int begin, end;
  };
  Range of(int n, int step = 1) const {
    const int n_steps = (n + step - 1) / step;
    const auto cut = [&](int t) {
      const long long at = (long long)n_steps * t / n_threads * step;
      return int(at < n ? at : n);
    };
    return {cut(thread), cut(thread + 1)};
  }
};

// Runs work({t, n_threads}) for every t, t = 0 on the caller. The first exception thrown by any is rethrown
// here. Regions from several callers take turns; a region inside a region is an error of the program.
void parallel(int n_threads, const std::function<void(Share)>& work);

int default_threads();  // RUSSET_THREADS, else the physical cores (performance cores on Apple chips)

}  // namespace russet
