#include "core/parallel.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
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

// Regions of one forward pass follow each other within microseconds, so a thread that waits looks for a while
// before it sleeps: long enough to bridge the serial parts of a decode step, short enough to give the core
// back when the caller goes off to do something else. After the first looks it lets others run in between: on
// a busy machine the one it waits for may be queueing for this very core (docs/performance.md).
static constexpr int kPauses = 100, kYields = 400;

template <typename Done>
static void wait_until(std::atomic<unsigned>& word, Done done) {
  unsigned seen = word.load(std::memory_order_acquire);
  for (int look = 0; !done(seen); ++look) {
    if (look < kPauses) {
      relax();
    } else if (look < kPauses + kYields) {
      std::this_thread::yield();
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
    while (int(workers_.size()) < n_threads - 1) add_worker();
    work_ = &work;
    n_threads_ = n_threads;
    error_ = nullptr;
    busy_.store(unsigned(n_threads - 1), std::memory_order_relaxed);
    // Each worker has its own word, so that a region wakes the threads it uses and no others.
    for (int t = 1; t < n_threads; ++t) {
      workers_[size_t(t - 1)]->regions.fetch_add(1, std::memory_order_release);
      workers_[size_t(t - 1)]->regions.notify_one();
    }
    run_share(0);
    wait_until(busy_, [](unsigned busy) { return busy == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct alignas(64) Worker {
    std::atomic<unsigned> regions{0};  // that it was called to
  };

  void add_worker() {
    workers_.push_back(std::make_unique<Worker>());
    try {
      std::thread([this, worker = workers_.back().get(), thread = int(workers_.size())] {
        serve(*worker, thread);
      }).detach();  // it sleeps until the process ends
    } catch (const std::system_error&) {
      workers_.pop_back();
      fail(ErrorKind::usage, "threads: the system refused thread ", workers_.size() + 2, "; load with fewer");
    }
  }

  void serve(Worker& worker, int thread) {
    for (unsigned served = 0;; ++served) {
      wait_until(worker.regions, [&](unsigned regions) { return regions != served; });
      run_share(thread);
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
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<unsigned> busy_{0};
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
