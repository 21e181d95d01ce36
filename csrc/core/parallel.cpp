#include "core/parallel.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/cpu.h"

namespace russet {

static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Regions of one forward pass follow each other within microseconds, so a thread that waits spins a little
// before it sleeps: long enough to bridge the serial parts of a decode step, short enough to give the core
// back when the caller goes off to do something else.
static constexpr int kSpins = 4000;

template <typename Done>
static void wait_until(std::atomic<unsigned>& word, Done done) {
  unsigned seen = word.load(std::memory_order_acquire);
  for (int spin = 0; !done(seen); ++spin) {
    if (spin < kSpins) {
      relax();
    } else {
      word.wait(seen, std::memory_order_acquire);
    }
    seen = word.load(std::memory_order_acquire);
  }
}

namespace {

class Pool {
 public:
  void run(int n_threads, const std::function<void(Share)>& work) {
    const std::lock_guard<std::mutex> turn(turn_);
    while (int(workers_.size()) < n_threads - 1) {
      const int thread = int(workers_.size()) + 1;
      workers_.emplace_back([this, thread, seen = region_.load()] { serve(thread, seen); });
      workers_.back().detach();  // they sleep until the process ends
    }
    work_ = &work;
    n_threads_ = n_threads;
    error_ = nullptr;
    busy_.store(unsigned(workers_.size()), std::memory_order_relaxed);
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
    run_share(0);
    wait_until(busy_, [](unsigned busy) { return busy == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void serve(int thread, unsigned seen) {
    for (;;) {
      wait_until(region_, [&](unsigned region) { return region != seen; });
      ++seen;
      if (thread < n_threads_) run_share(thread);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  void run_share(int thread) {
    try {
      (*work_)({thread, n_threads_});
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_lock_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex turn_, error_lock_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> region_{0}, busy_{0};
  const std::function<void(Share)>* work_ = nullptr;
  int n_threads_ = 0;
  std::exception_ptr error_;
};

}  // namespace

// A forked child has none of its parent's threads: it gets a new pool and leaves the old one alone. Never
// destroyed, because its threads may still be asleep in it when the process ends.
static Pool* g_pool = nullptr;

static Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { g_pool = new Pool; });
  });
  return *g_pool;
}

void parallel(int n_threads, const std::function<void(Share)>& work) {
  if (n_threads <= 1) return work({0, 1});
  pool().run(n_threads, work);
}

int default_threads() {
  const char* env = std::getenv("RUSSET_THREADS");
  if (!env || !*env) return n_physical_cores();
  char* end = nullptr;
  const long n = std::strtol(env, &end, 10);
  check(*end == 0 && n >= 1 && n <= 1024, ErrorKind::usage, "RUSSET_THREADS: expected 1 to 1024, got '", env,
        "'");
  return int(n);
}

}  // namespace russet
