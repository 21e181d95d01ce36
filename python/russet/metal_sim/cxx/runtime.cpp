// The scheduler: every thread of a threadgroup is a fiber, and one of them runs at a time.
//
// A fiber runs until it waits: at a SIMD operation for the other lanes of its SIMD-group, at a barrier for
// the other threads of its threadgroup. Then the next one that may run gets its turn: lanes of the same
// SIMD-group first, in the order of the schedule. When nobody may run although somebody waits, the kernel is
// wrong, and the run ends with the place where it waits. Threadgroups run one after the other.
//
// Nothing here is instrumented by a sanitizer, and nothing needs the C++ library.
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "fiber.h"
#include "thread.h"

#define METAL_SIM_EXPORT extern "C" __attribute__((visibility("default")))

// What a sanitizer must know about fibers and memory. Weak: libraries built without one find none of it.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, size_t);
__attribute__((weak)) void* __tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_destroy_fiber(void*);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);

// The section of ThreadgroupVariable records, from the linker; absent in a library whose kernels declare
// none.
__attribute__((weak, visibility("hidden"))) extern metal_sim::ThreadgroupVariable __start_metal_sim_tg[];
__attribute__((weak, visibility("hidden"))) extern metal_sim::ThreadgroupVariable __stop_metal_sim_tg[];
}

namespace metal_sim {

bool only_naming = false;
volatile bool in_atomic = false;

namespace {

constexpr size_t kPage = 4096;
// Address space that nobody may touch, on both sides of a buffer and below the stacks.
constexpr size_t kGuard = size_t(1) << 20;
// A bad access is to a buffer no farther than this: an unsigned index below zero leads so far.
constexpr uint64_t kNear = uint64_t(1) << 35;
// Of a thread. build.py refuses functions that want a quarter of it; its lowest word tells if it was enough.
constexpr size_t kStack = size_t(256) << 10;
constexpr uint64_t kStackEnd = 0x6d6574616c73696d;
constexpr size_t kMaxValue = 64;         // bytes that a lane can give to a SIMD operation
constexpr uint32_t kMaxVariables = 256;  // in threadgroup memory, of one kernel
constexpr uint32_t kWidth = kMetalSimSimdWidth;
constexpr unsigned kNoSync = 1;  // to TSan: switching fibers orders no memory

enum class State { ready, in_simd_op, at_barrier, done };

struct Lane {
  void* stack_pointer;
  State state;
  Site site;               // where it waits
  uint32_t n_barriers[2];  // that it passed, by Barrier
  uint32_t n_exchanges;
  void* fake_stack;  // ASan's
  void* fiber;       // TSan's
  Place place;
};

struct SimdGroup {
  uint32_t n_lanes, n_waiting;
  uint32_t ready;  // one bit for each lane
  // Values of this SIMD operation and of the one before, which a slow lane may still read.
  alignas(16) unsigned char values[2][kWidth * kMaxValue];
  char order[2];  // TSan's: barriers alternate, so that one's release is not the next one's
};

// Of one buffer: a bit for every byte that was read or written and, where the kernel may write, for every
// byte the threadgroup that did, by number from 1.
struct Touched {
  uint8_t *read, *written;
  uint32_t *reader, *writer;
};
constexpr uint32_t kSeveral = ~0u;  // of them read it

struct Run {
  const MetalSimLaunch* launch;
  const Kernel* kernel;
  void* buffers[kMetalSimMaxBuffers];
  void* threadgroup_memory[kMetalSimMaxBuffers];
  uint64_t threadgroup_bytes[kMetalSimMaxBuffers];
  Bindings bindings;
  const ThreadgroupVariable* variables[kMaxVariables];
  uint32_t n_variables;
  char* stacks;
  size_t n_stacks;

  Lane lanes[kMetalSimMaxThreads];
  SimdGroup simdgroups[kMetalSimMaxThreads / kWidth];
  uint32_t n_threads, n_simdgroups, n_at_barrier, n_done;
  uint32_t current;  // index of the lane that runs
  uint64_t random;
  char order[2], order_start, order_end;  // TSan's

  void* main_stack_pointer;
  void *main_fake_stack, *main_fiber;
  const void* main_stack;
  size_t main_stack_bytes;

  uint32_t n_started;  // threadgroups; so the one that runs has this number, counted from 1
  bool failed;
  bool counting;
  Touched touched[kMetalSimMaxBuffers];
  uint32_t last_buffer;  // that was counted: the next access is likely to the same
};

Run run;
pthread_mutex_t one_run_at_a_time = PTHREAD_MUTEX_INITIALIZER;
volatile bool running = false;
pthread_t running_thread;

bool sanitized() {
  return __sanitizer_start_switch_fiber || __tsan_switch_to_fiber;
}

// Not memcpy: sanitizers see that one, and lanes meet here without any order that they know of.
void copy_unseen(unsigned char* to, const void* from, size_t bytes) {
  const unsigned char* source = static_cast<const unsigned char*>(from);
  for (size_t i = 0; i < bytes; ++i) to[i] = source[i];
}

bool same(Site a, Site b) {
  return a.line == b.line && a.column == b.column && (a.file == b.file || !strcmp(a.file, b.file));
}

uint64_t next_random() {  // xorshift64*, Vigna 2016
  run.random ^= run.random >> 12;
  run.random ^= run.random << 25;
  run.random ^= run.random >> 27;
  return run.random * 0x2545f4914f6cdd1dull;
}

uint32_t random_below(uint32_t n) {
  return uint32_t((next_random() >> 32) % n);
}

// ---- errors

__attribute__((format(printf, 2, 3))) void set_error(Site site, const char* format, ...) {
  MetalSimError* error = run.launch->error;
  va_list values;
  va_start(values, format);
  vsnprintf(error->text, sizeof error->text, format, values);
  va_end(values);
  error->file = site.file;
  error->line = site.line;
  error->column = site.column;
  run.failed = true;
}

// Where this library is loaded: its ELF header.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[];

// The instruction that an error is about; addr2line knows its line.
void set_pc(uint64_t pc) {
  run.launch->error->has_pc = 1;
  run.launch->error->pc = pc - reinterpret_cast<uint64_t>(__ehdr_start);
}

// ---- switching

char* stack_of(uint32_t lane) {
  return run.stacks + kGuard + lane * kStack;
}

void switch_to_lane(uint32_t next) {
  Lane& from = run.lanes[run.current];
  Lane& to = run.lanes[next];
  if (&from == &to) return;
  run.current = next;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(from.state == State::done ? nullptr : &from.fake_stack, stack_of(next),
                                   kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.fiber, kNoSync);
  metal_sim_switch(&from.stack_pointer, to.stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

// Leaves this fiber for good: the threadgroup is done, or the run has failed.
[[noreturn]] void switch_to_main() {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(nullptr, run.main_stack, run.main_stack_bytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(run.main_fiber, kNoSync);
  metal_sim_switch(&run.lanes[run.current].stack_pointer, run.main_stack_pointer);
  __builtin_trap();
}

// The lane of a SIMD-group that runs first, by the schedule.
uint32_t first_ready(uint32_t simdgroup) {
  const uint32_t ready = run.simdgroups[simdgroup].ready;
  uint32_t lane;
  if (run.launch->schedule == 0) {
    lane = uint32_t(__builtin_ctz(ready));
  } else if (run.launch->schedule == 1) {
    lane = 31 - uint32_t(__builtin_clz(ready));
  } else {
    const uint32_t start = random_below(kWidth);
    const uint32_t turned = ready >> start | ready << ((kWidth - start) % kWidth);
    lane = (uint32_t(__builtin_ctz(turned)) + start) % kWidth;
  }
  return simdgroup * kWidth + lane;
}

// The lane that runs next, or -1: of the same SIMD-group, else of the next one by the schedule. At random,
// any.
int next_lane() {
  const uint32_t n = run.n_simdgroups, schedule = run.launch->schedule;
  const uint32_t start = schedule > 1 ? random_below(n) : run.current / kWidth;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t simdgroup = (schedule == 1 ? start + n - i : start + i) % n;
    if (run.simdgroups[simdgroup].ready) return int(first_ready(simdgroup));
  }
  return -1;
}

void set_ready(uint32_t lane) {
  run.lanes[lane].state = State::ready;
  run.simdgroups[lane / kWidth].ready |= 1u << lane % kWidth;
}

// ---- what happens when nobody can run

// Where a lane is, for a message about another that waits for it.
void describe(const Lane& lane, char* text, size_t bytes) {
  if (lane.state == State::done)
    snprintf(text, bytes, "thread %u has returned", lane.place.thread_index_in_threadgroup);
  else
    snprintf(text, bytes, "thread %u waits at %s:%u:%u", lane.place.thread_index_in_threadgroup,
             lane.site.file, lane.site.line, lane.site.column);
}

[[noreturn]] void fail_divergent_simd_op(uint32_t simdgroup, Site site) {
  const uint32_t first = simdgroup * kWidth, n_lanes = run.simdgroups[simdgroup].n_lanes;
  uint32_t n_here = 0;
  const Lane* elsewhere = nullptr;
  for (uint32_t i = first; i < first + n_lanes; ++i) {
    const Lane& lane = run.lanes[i];
    if (lane.state == State::in_simd_op && same(lane.site, site))
      ++n_here;
    else if (!elsewhere)
      elsewhere = &lane;
  }
  char where[300];
  describe(*elsewhere, where, sizeof where);
  set_error(site, "SIMD operation in divergent flow: %u of the %u lanes of SIMD-group %u are here, %s",
            n_here, n_lanes, simdgroup, where);
  switch_to_main();
}

[[noreturn]] void fail_divergent_barrier(Site site) {
  uint32_t n_here = 0;
  const Lane* elsewhere = nullptr;
  for (uint32_t i = 0; i < run.n_threads; ++i) {
    const Lane& lane = run.lanes[i];
    if (lane.state == State::at_barrier && same(lane.site, site))
      ++n_here;
    else if (!elsewhere || lane.state == State::done)
      elsewhere = &lane;
  }
  char where[300];
  describe(*elsewhere, where, sizeof where);
  set_error(site, "threadgroup_barrier in divergent flow: %u of the %u threads are here, %s", n_here,
            run.n_threads, where);
  switch_to_main();
}

// Somebody waits for a lane that will never come.
[[noreturn]] void fail_stuck() {
  for (uint32_t i = 0; i < run.n_threads; ++i)
    if (run.lanes[i].state == State::in_simd_op) fail_divergent_simd_op(i / kWidth, run.lanes[i].site);
  for (uint32_t i = 0; i < run.n_threads; ++i)
    if (run.lanes[i].state == State::at_barrier) fail_divergent_barrier(run.lanes[i].site);
  __builtin_trap();
}

// ---- waiting

void wait_here(State state, Site site) {
  Lane& lane = run.lanes[run.current];
  lane.state = state;
  lane.site = site;
  run.simdgroups[run.current / kWidth].ready &= ~(1u << run.current % kWidth);
}

void run_another() {
  const int next = next_lane();
  if (next < 0) fail_stuck();
  switch_to_lane(uint32_t(next));
}

// Waits until all lanes of the SIMD-group do.
void meet_simdgroup(Site site) {
  const uint32_t index = run.current / kWidth;
  SimdGroup& simdgroup = run.simdgroups[index];
  wait_here(State::in_simd_op, site);
  if (++simdgroup.n_waiting == simdgroup.n_lanes) {
    const uint32_t first = index * kWidth;
    for (uint32_t i = first; i < first + simdgroup.n_lanes; ++i)
      if (!same(run.lanes[i].site, site)) fail_divergent_simd_op(index, site);
    for (uint32_t i = first; i < first + simdgroup.n_lanes; ++i) set_ready(i);
    simdgroup.n_waiting = 0;
    ++run.launch->report->simd_ops;
  }
  run_another();
}

void meet_threadgroup(Site site) {
  wait_here(State::at_barrier, site);
  if (++run.n_at_barrier == run.n_threads) {
    for (uint32_t i = 0; i < run.n_threads; ++i)
      if (!same(run.lanes[i].site, site)) fail_divergent_barrier(site);
    for (uint32_t i = 0; i < run.n_threads; ++i) set_ready(i);
    run.n_at_barrier = 0;
    ++run.launch->report->barriers;
  }
  run_another();
}

// ---- one threadgroup

// Where every fiber begins.
void lane_main() {
  if (__sanitizer_finish_switch_fiber) {
    const void* from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &from, &bytes);
    if (!run.main_stack) run.main_stack = from, run.main_stack_bytes = bytes;
  }
  if (__tsan_acquire) __tsan_acquire(&run.order_start);
  run.kernel->run(run.bindings);
  if (__tsan_release) __tsan_release(&run.order_end);
  wait_here(State::done, Site{});
  if (++run.n_done == run.n_threads) switch_to_main();
  run_another();
  __builtin_trap();
}

void place_lane(uint32_t i, const uint32_t group[3]) {
  const uint32_t* threads = run.launch->threads;
  const uint32_t* groups = run.launch->groups;
  const uint32_t position[3] = {i % threads[0], i / threads[0] % threads[1], i / threads[0] / threads[1]};
  Place& place = run.lanes[i].place;
  for (int d = 0; d < 3; ++d) {
    place.thread_position_in_threadgroup[d] = position[d];
    place.threadgroup_position_in_grid[d] = group[d];
    place.thread_position_in_grid[d] = group[d] * threads[d] + position[d];
    place.threads_per_threadgroup[d] = threads[d];
    place.threads_per_grid[d] = groups[d] * threads[d];
    place.threadgroups_per_grid[d] = groups[d];
  }
  place.thread_index_in_threadgroup = i;
  place.thread_index_in_simdgroup = i % kWidth;
  place.simdgroup_index_in_threadgroup = i / kWidth;
  place.simdgroups_per_threadgroup = run.n_simdgroups;
}

// Threadgroup memory begins with no defined value: here with 0xFF, which is NaN in every float type.
void refill_threadgroup_memory() {
  for (uint32_t i = 0; i < run.n_variables; ++i)
    memset(run.variables[i]->memory, 0xff, run.variables[i]->bytes);
  for (uint32_t i = 0; i < kMetalSimMaxBuffers; ++i)
    if (run.threadgroup_memory[i]) memset(run.threadgroup_memory[i], 0xff, run.threadgroup_bytes[i]);
}

void run_threadgroup(const uint32_t group[3]) {
  for (uint32_t s = 0; s < run.n_simdgroups; ++s) {
    SimdGroup& simdgroup = run.simdgroups[s];
    simdgroup.n_lanes = run.n_threads - s * kWidth < kWidth ? run.n_threads - s * kWidth : kWidth;
    simdgroup.n_waiting = simdgroup.ready = 0;
  }
  run.n_at_barrier = run.n_done = 0;
  for (uint32_t i = 0; i < run.n_threads; ++i) {
    Lane& lane = run.lanes[i];
    lane.n_barriers[0] = lane.n_barriers[1] = lane.n_exchanges = 0;
    lane.fake_stack = nullptr;
    lane.stack_pointer = fresh_stack(stack_of(i) + kStack, lane_main);
    place_lane(i, group);
    set_ready(i);
  }
  refill_threadgroup_memory();
  ++run.n_started;
  const uint32_t schedule = run.launch->schedule, n = run.n_simdgroups;
  run.current = first_ready(schedule == 0 ? 0 : schedule == 1 ? n - 1 : random_below(n));
  if (__tsan_release) __tsan_release(&run.order_start);
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&run.main_fake_stack, stack_of(run.current), kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(run.lanes[run.current].fiber, kNoSync);
  metal_sim_switch(&run.main_stack_pointer, run.lanes[run.current].stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(run.main_fake_stack, nullptr, nullptr);
  if (__tsan_acquire) __tsan_acquire(&run.order_end);
  if (run.failed) return;
  for (uint32_t i = 0; i < run.n_threads; ++i)
    if (*reinterpret_cast<uint64_t*>(stack_of(i)) != kStackEnd)
      return set_error(Site{}, "the variables of thread %u need more than the %zu KiB of its stack", i,
                       kStack >> 10);
  ++run.launch->report->groups;
  run.launch->report->threads += run.n_threads;
}

// ---- bad accesses

struct sigaction before_us[2];
char signal_stack[64 << 10];

// The bound buffer that an address is least far outside of, or -1; `byte` is where that is in the buffer.
int buffer_near(const char* address, int64_t* byte) {
  int nearest = -1;
  uint64_t least = kNear;
  for (uint32_t i = 0; i < run.launch->n_buffers; ++i) {
    const MetalSimBufferBinding& buffer = run.launch->buffers[i];
    if (!buffer.data) continue;
    const int64_t offset = address - static_cast<const char*>(buffer.data);
    const uint64_t outside = offset < 0 ? uint64_t(-offset) : uint64_t(offset) - buffer.bytes;
    if ((offset < 0 || uint64_t(offset) >= buffer.bytes) && outside < least)
      least = outside, nearest = int(i), *byte = offset;
  }
  return nearest;
}

void on_bad_access(int number, siginfo_t* info, void* context) {
  if (!running || !pthread_equal(running_thread, pthread_self())) {
    // Not ours: what would have happened without us.
    const struct sigaction& before = before_us[number == SIGBUS];
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(number, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(number);
    signal(number, SIG_DFL);
    return;  // the access is tried again, and now ends the process
  }
  const mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const uint64_t pc = uint64_t(machine.gregs[REG_RIP]);
  const char* did = machine.gregs[REG_ERR] & 2 ? "write" : "read";
#else
  const uint64_t pc = machine.pc;
  const char* did = "access";
#endif
  const char* address = static_cast<const char*>(info->si_addr);
  int64_t byte = 0;
  const int buffer = buffer_near(address, &byte);
  const uint32_t thread = run.lanes[run.current].place.thread_index_in_threadgroup;
  const uint32_t* group = run.lanes[run.current].place.threadgroup_position_in_grid;
  if (buffer >= 0)
    set_error(Site{}, "%s outside buffer %d: at byte %lld of %llu, by thread %u of threadgroup (%u, %u, %u)",
              did, buffer, static_cast<long long>(byte),
              static_cast<unsigned long long>(run.launch->buffers[buffer].bytes), thread, group[0], group[1],
              group[2]);
  else
    set_error(Site{}, "%s at address %p, near no buffer%s, by thread %u of threadgroup (%u, %u, %u)", did,
              static_cast<const void*>(address),
              address < reinterpret_cast<char*>(kGuard) ? " (one not bound?)" : "", thread, group[0],
              group[1], group[2]);
  run.launch->error->buffer = buffer;
  set_pc(pc);
  switch_to_main();
}

// Once for each library. It is never taken back, because another library may have put its own upon it; so a
// library is never unloaded, either (-z nodelete).
void install_handler() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  struct sigaction action = {};
  action.sa_sigaction = on_bad_access;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // left by switching: nothing may stay blocked
  sigaction(SIGSEGV, &action, &before_us[0]);
  sigaction(SIGBUS, &action, &before_us[1]);
}

// ---- counting

// Threadgroups run in no order that a kernel may rely on: what one writes, no other may read or write.
void check_alone(uint32_t buffer, uint64_t byte, bool write, const void* pc) {
  const Touched& touched = run.touched[buffer];
  const uint32_t mine = run.n_started;
  const uint32_t writer = touched.writer[byte], reader = touched.reader[byte];
  const char* other = writer && writer != mine            ? "wrote"
                      : write && reader && reader != mine ? "read"
                                                          : nullptr;
  if (write)
    touched.writer[byte] = mine;
  else
    touched.reader[byte] = reader && reader != mine ? kSeveral : mine;
  if (!other) return;
  const uint32_t* group = run.lanes[run.current].place.threadgroup_position_in_grid;
  set_error(Site{},
            "threadgroup (%u, %u, %u) %s byte %llu of buffer %u, which another one %s: nothing orders them",
            group[0], group[1], group[2], write ? "writes" : "reads", static_cast<unsigned long long>(byte),
            buffer, other);
  run.launch->error->buffer = int32_t(buffer);
  set_pc(reinterpret_cast<uint64_t>(pc) - 1);  // of the call, not of what follows it
  switch_to_main();
}

void count(const void* address, size_t bytes, bool write, const void* pc) {
  if (!running || !run.counting) return;
  const uint32_t n = run.launch->n_buffers;
  for (uint32_t k = 0, i = run.last_buffer; k < n; ++k, i = i + 1 == n ? 0 : i + 1) {
    const uint64_t offset = uint64_t(static_cast<const char*>(address) - static_cast<char*>(run.buffers[i]));
    if (offset >= run.launch->buffers[i].bytes) continue;
    run.last_buffer = i;
    MetalSimTraffic& traffic = run.launch->report->traffic[i];
    (write ? traffic.written_moved : traffic.read_moved) += bytes;
    const Touched& touched = run.touched[i];
    uint8_t* bits = write ? touched.written : touched.read;
    uint64_t& n_touched = write ? traffic.written_touched : traffic.read_touched;
    for (uint64_t b = offset; b < offset + bytes && b < run.launch->buffers[i].bytes; ++b) {
      n_touched += !(bits[b / 8] >> b % 8 & 1);
      bits[b / 8] = uint8_t(bits[b / 8] | 1 << b % 8);
      if (touched.writer && !in_atomic) check_alone(i, b, write, pc);
    }
    return;
  }
}

// Zeros, of which only what is used takes memory. Null for no bytes, and where there are none left.
void* reserve(size_t bytes) {
  if (!bytes) return nullptr;
  void* zeros =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return zeros == MAP_FAILED ? nullptr : zeros;
}

void release(void* zeros, size_t bytes) {
  if (zeros) munmap(zeros, bytes);
}

bool may_be_written(uint32_t buffer) {
  const MetalSimKernel& kernel = run.kernel->described;
  for (uint32_t i = 0; i < kernel.n_arguments; ++i)
    if (kernel.arguments[i].kind == kMetalSimBuffer && kernel.arguments[i].index == buffer)
      return kernel.arguments[i].writable;
  return false;
}

bool start_counting() {
  run.last_buffer = 0;
  bool enough = true;
  for (uint32_t i = 0; i < run.launch->n_buffers; ++i) {
    const size_t bytes = run.launch->buffers[i].bytes,
                 groups = may_be_written(i) ? bytes * sizeof(uint32_t) : 0;
    run.touched[i] = {static_cast<uint8_t*>(reserve(bytes / 8 + 1)),
                      static_cast<uint8_t*>(reserve(bytes / 8 + 1)), static_cast<uint32_t*>(reserve(groups)),
                      static_cast<uint32_t*>(reserve(groups))};
    enough &= run.touched[i].read && run.touched[i].written && (!groups || run.touched[i].reader) &&
              (!groups || run.touched[i].writer);
  }
  return enough;
}

void stop_counting() {
  for (uint32_t i = 0; i < run.launch->n_buffers; ++i) {
    const size_t bytes = run.launch->buffers[i].bytes;
    Touched& touched = run.touched[i];
    release(touched.read, bytes / 8 + 1);
    release(touched.written, bytes / 8 + 1);
    release(touched.reader, bytes * sizeof(uint32_t));
    release(touched.writer, bytes * sizeof(uint32_t));
    touched = {};
  }
}

// ---- a launch

const char* named_function;
uint32_t named_max_threads;

// Finds the threadgroup variables of a kernel, by the name that it says when it is called. Returns their
// bytes.
uint64_t find_variables(const Kernel& kernel) {
  void* const nothing[kMetalSimMaxBuffers] = {};
  only_naming = true;
  kernel.run(Bindings{nothing, nothing});
  only_naming = false;
  uint64_t bytes = 0;
  run.n_variables = 0;
  for (const ThreadgroupVariable* v = __start_metal_sim_tg; v != __stop_metal_sim_tg; ++v) {
    if (strcmp(v->function, named_function) != 0 || run.n_variables == kMaxVariables) continue;
    run.variables[run.n_variables++] = v;
    bytes += v->bytes;
  }
  return bytes;
}

MetalSimKernel table[1024];

// Fills `table` when the library is loaded.
__attribute__((constructor)) void describe_kernels() {
  for (uint32_t i = 0; i < n_kernels && i < sizeof table / sizeof *table; ++i) {
    table[i] = kernels[i].described;
    table[i].threadgroup_bytes = find_variables(kernels[i]);
    table[i].max_threads = named_max_threads;
  }
}

const MetalSimArgument* argument_at(const MetalSimKernel& kernel, bool threadgroup, uint32_t index) {
  for (uint32_t i = 0; i < kernel.n_arguments; ++i) {
    const MetalSimArgument& argument = kernel.arguments[i];
    if (argument.kind != kMetalSimPlace && (argument.kind == kMetalSimThreadgroup) == threadgroup &&
        argument.index == index)
      return &argument;
  }
  return nullptr;
}

// Whether the launch gives what the kernel takes. Otherwise the error is set.
bool check_buffers(const MetalSimKernel& kernel) {
  const MetalSimLaunch& launch = *run.launch;
  if (launch.n_buffers > kMetalSimMaxBuffers)
    return set_error(Site{}, "buffer %u: Metal has buffers 0 to 30", launch.n_buffers - 1), false;
  for (uint32_t i = 0; i < launch.n_buffers; ++i)
    if (launch.buffers[i].data && !argument_at(kernel, false, i))
      return set_error(Site{}, "buffer %u is bound, but the kernel has no [[buffer(%u)]]", i, i), false;
  for (uint32_t i = 0; i < kernel.n_arguments; ++i) {
    const MetalSimArgument& argument = kernel.arguments[i];
    if (argument.kind != kMetalSimBuffer && argument.kind != kMetalSimReference) continue;
    const MetalSimBufferBinding none = {};
    const MetalSimBufferBinding& buffer =
        argument.index < launch.n_buffers ? launch.buffers[argument.index] : none;
    if (!buffer.data && !argument.optional)
      return set_error(Site{}, "buffer %u is not bound: %s %s", argument.index, argument.type, argument.name),
             false;
    if (buffer.data && argument.kind == kMetalSimReference && buffer.bytes < argument.bytes)
      return set_error(Site{}, "buffer %u, %s %s: expected %llu bytes, got %llu", argument.index,
                       argument.type, argument.name, static_cast<unsigned long long>(argument.bytes),
                       static_cast<unsigned long long>(buffer.bytes)),
             false;
  }
  return true;
}

bool check_threadgroup_memory(const MetalSimKernel& kernel) {
  const MetalSimLaunch& launch = *run.launch;
  uint64_t bytes = kernel.threadgroup_bytes;
  for (uint32_t i = 0; i < launch.n_threadgroup_memory && i < kMetalSimMaxBuffers; ++i) {
    const uint64_t length = launch.threadgroup_memory[i];
    if (length && !argument_at(kernel, true, i))
      return set_error(Site{}, "threadgroup memory %u is given, but the kernel has no [[threadgroup(%u)]]", i,
                       i),
             false;
    if (length % 16)
      return set_error(Site{}, "threadgroup memory %u: expected a multiple of 16 bytes, got %llu", i,
                       static_cast<unsigned long long>(length)),
             false;
    bytes += length;
  }
  for (uint32_t i = 0; i < kernel.n_arguments; ++i) {
    const MetalSimArgument& argument = kernel.arguments[i];
    if (argument.kind == kMetalSimThreadgroup && !argument.optional &&
        (argument.index >= launch.n_threadgroup_memory || !launch.threadgroup_memory[argument.index]))
      return set_error(Site{}, "threadgroup memory %u is not given: %s %s", argument.index, argument.type,
                       argument.name),
             false;
  }
  if (bytes > kMetalSimMaxThreadgroupBytes)
    return set_error(Site{}, "threadgroup memory: %llu bytes, and a threadgroup has %u",
                     static_cast<unsigned long long>(bytes), kMetalSimMaxThreadgroupBytes),
           false;
  return true;
}

bool check_grid(const MetalSimKernel& kernel) {
  const uint32_t *threads = run.launch->threads, *groups = run.launch->groups;
  const uint64_t n = uint64_t(threads[0]) * threads[1] * threads[2];
  if (threads[0] > kMetalSimMaxThreads || threads[1] > kMetalSimMaxThreads ||
      threads[2] > kMetalSimMaxThreads || n > kernel.max_threads)
    return set_error(Site{}, "%u x %u x %u threads in a threadgroup, and the kernel takes at most %u",
                     threads[0], threads[1], threads[2], kernel.max_threads),
           false;
  if (!n || !groups[0] || !groups[1] || !groups[2])
    return set_error(Site{}, "an empty grid: %u x %u x %u threadgroups of %u x %u x %u threads", groups[0],
                     groups[1], groups[2], threads[0], threads[1], threads[2]),
           false;
  return true;
}

bool set_constants() {
  for (uint32_t i = 0; i < n_function_constants; ++i) *function_constants[i].defined = false;
  for (uint32_t k = 0; k < run.launch->n_constants; ++k) {
    const MetalSimConstantValue& given = run.launch->constants[k];
    bool known = false;
    for (uint32_t i = 0; i < n_function_constants; ++i) {
      const FunctionConstant& constant = function_constants[i];
      if (constant.described.index != given.index) continue;
      if (constant.described.bytes != given.bytes)
        return set_error(Site{}, "function constant %u, %s %s: expected %u bytes, got %u", given.index,
                         constant.described.type, constant.described.name, constant.described.bytes,
                         given.bytes),
               false;
      memcpy(constant.value, given.value, given.bytes);
      *constant.defined = known = true;
    }
    if (!known) return set_error(Site{}, "there is no function constant %u", given.index), false;
  }
  return true;
}

bool prepare() {
  const MetalSimLaunch& launch = *run.launch;
  for (uint32_t i = 0; i < kMetalSimMaxBuffers; ++i) {
    run.buffers[i] = i < launch.n_buffers ? launch.buffers[i].data : nullptr;
    run.threadgroup_bytes[i] = i < launch.n_threadgroup_memory ? launch.threadgroup_memory[i] : 0;
    run.threadgroup_memory[i] = nullptr;
    if (run.threadgroup_bytes[i]) {
      run.threadgroup_memory[i] = metal_sim_allocate(run.threadgroup_bytes[i]);
      if (!run.threadgroup_memory[i]) return set_error(Site{}, "out of memory"), false;
    }
  }
  run.bindings = {run.buffers, run.threadgroup_memory};
  run.n_threads = launch.threads[0] * launch.threads[1] * launch.threads[2];
  run.n_simdgroups = (run.n_threads + kWidth - 1) / kWidth;
  if (run.n_stacks < run.n_threads) {  // kept for the next run
    if (run.n_stacks) munmap(run.stacks, kGuard + run.n_stacks * kStack);
    run.n_stacks = 0;
    void* stacks = mmap(nullptr, kGuard + run.n_threads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return set_error(Site{}, "out of memory for the stacks"), false;
    mprotect(stacks, kGuard, PROT_NONE);
    run.stacks = static_cast<char*>(stacks);
    run.n_stacks = run.n_threads;
    for (uint32_t i = 0; i < run.n_threads; ++i) *reinterpret_cast<uint64_t*>(stack_of(i)) = kStackEnd;
  }
  run.main_stack = nullptr;
  if (__tsan_create_fiber) {
    run.main_fiber = __tsan_get_current_fiber();
    for (uint32_t i = 0; i < run.n_threads; ++i) run.lanes[i].fiber = __tsan_create_fiber(0);
  }
  run.counting = launch.report && METAL_SIM_COUNT;
  if (run.counting && !start_counting()) return set_error(Site{}, "out of memory for the counts"), false;
  return true;
}

void clean_up() {
  if (run.counting) stop_counting();
  if (__tsan_destroy_fiber)
    for (uint32_t i = 0; i < run.n_threads; ++i) __tsan_destroy_fiber(run.lanes[i].fiber);
  for (uint32_t i = 0; i < kMetalSimMaxBuffers; ++i)
    if (run.threadgroup_memory[i]) metal_sim_free(run.threadgroup_memory[i], run.threadgroup_bytes[i]);
}

// All threadgroups, in the order of the schedule.
void run_grid() {
  const uint32_t* groups = run.launch->groups;
  const uint64_t n = uint64_t(groups[0]) * groups[1] * groups[2];
  run.random = 0x9e3779b97f4a7c15ull * (uint64_t(run.launch->schedule) + 1);
  // A random order without a table: steps of a length that shares no factor with n.
  uint64_t step = 1, at = 0;
  if (run.launch->schedule == 1) step = n - 1, at = n - 1;
  if (run.launch->schedule > 1) {
    auto shares_a_factor = [](uint64_t a, uint64_t b) {
      while (b) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
      }
      return a != 1;
    };
    do step = 1 + next_random() % n;
    while (shares_a_factor(step, n));
    at = next_random() % n;
  }
  for (uint64_t k = 0; k < n && !run.failed; ++k, at = (at + step) % n) {
    const uint32_t group[3] = {uint32_t(at % groups[0]), uint32_t(at / groups[0] % groups[1]),
                               uint32_t(at / groups[0] / groups[1])};
    run_threadgroup(group);
  }
}

void run_kernel(const Kernel& kernel, const MetalSimKernel& described) {
  if (!check_grid(described) || !check_buffers(described) || !check_threadgroup_memory(described) ||
      !set_constants())
    return;
  run.kernel = &kernel;
  find_variables(kernel);
  if (prepare()) {
    const stack_t ours = {signal_stack, 0, sizeof signal_stack};
    stack_t before;
    if (!sanitized()) {
      install_handler();
      sigaltstack(&ours, &before);
    }
    running_thread = pthread_self();
    running = true;
    run_grid();
    running = false;
    if (!sanitized()) sigaltstack(&before, nullptr);
  }
  clean_up();
}

}  // namespace

void enter_kernel(const char* function, uint32_t max_threads) {
  named_function = function;
  named_max_threads = max_threads;
}

const Place& place() {
  return run.lanes[run.current].place;
}

void fail(const char* what, Site site) {
  set_error(site, "%s", what);
  switch_to_main();
}

void fail_undefined_constant(uint32_t index) {
  const char* name = "?";
  for (uint32_t i = 0; i < n_function_constants; ++i)
    if (function_constants[i].described.index == index) name = function_constants[i].described.name;
  set_error(Site{}, "function constant %u, %s, is read, but was not given", index, name);
  switch_to_main();
}

const void* exchange(const void* value, size_t bytes, Site site) {
  Lane& lane = run.lanes[run.current];
  unsigned char* values = run.simdgroups[run.current / kWidth].values[lane.n_exchanges++ % 2];
  if (bytes > kMaxValue) fail("a SIMD operation on a type of more than 64 bytes", site);
  copy_unseen(values + lane.place.thread_index_in_simdgroup * bytes, value, bytes);
  meet_simdgroup(site);
  return values;
}

void barrier(Barrier kind, bool memory_ordered, Site site) {
  Lane& lane = run.lanes[run.current];
  char* orders = kind == Barrier::of_threadgroup ? run.order : run.simdgroups[run.current / kWidth].order;
  char* order = &orders[lane.n_barriers[int(kind)]++ % 2];
  if (memory_ordered && __tsan_release) __tsan_release(order);
  if (kind == Barrier::of_threadgroup)
    meet_threadgroup(site);
  else
    meet_simdgroup(site);
  if (memory_ordered && __tsan_acquire) __tsan_acquire(order);
}

}  // namespace metal_sim

// ---- the C interface

using namespace metal_sim;

METAL_SIM_EXPORT uint32_t metal_sim_abi() {
  return kMetalSimAbi;
}

METAL_SIM_EXPORT const MetalSimKernel* metal_sim_kernels(uint32_t* n) {
  *n = n_kernels;
  return table;
}

METAL_SIM_EXPORT const MetalSimFunctionConstant* metal_sim_constants(uint32_t* n) {
  static MetalSimFunctionConstant constants[256];
  *n = n_function_constants < 256 ? n_function_constants : 256;
  for (uint32_t i = 0; i < *n; ++i) constants[i] = function_constants[i].described;
  return constants;
}

METAL_SIM_EXPORT int metal_sim_run(const MetalSimLaunch* launch) {
  pthread_mutex_lock(&one_run_at_a_time);
  *launch->report = MetalSimReport{};
  *launch->error = MetalSimError{};
  launch->error->buffer = -1;
  run.launch = launch;
  run.failed = false;
  run.n_started = 0;
  uint32_t i = 0;
  while (i < n_kernels && strcmp(table[i].name, launch->kernel) != 0) ++i;
  if (i < n_kernels)
    run_kernel(kernels[i], table[i]);
  else
    set_error(Site{}, "there is no such kernel");
  const bool failed = run.failed;
  pthread_mutex_unlock(&one_run_at_a_time);
  return failed;
}

METAL_SIM_EXPORT void* metal_sim_allocate(uint64_t bytes) {
  if (sanitized()) {  // ASan has its own guards, around what malloc gives
    void* memory = malloc(bytes ? bytes : 1);
    if (memory) memset(memory, 0xff, bytes);
    return memory;
  }
  const uint64_t inside = (bytes + kPage - 1) / kPage * kPage;
  void* all =
      mmap(nullptr, inside + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(all) + kGuard;
  if (inside && mprotect(begin, inside, PROT_READ | PROT_WRITE) != 0) {
    munmap(all, inside + 2 * kGuard);
    return nullptr;
  }
  memset(begin, 0xff, inside);
  return begin + inside - bytes;
}

METAL_SIM_EXPORT void metal_sim_free(void* memory, uint64_t bytes) {
  if (sanitized()) return free(memory);
  const uint64_t inside = (bytes + kPage - 1) / kPage * kPage;
  char* begin = static_cast<char*>(memory) + bytes - inside;
  munmap(begin - kGuard, inside + 2 * kGuard);
}

// Calls that clang puts before every load and store of a library compiled with count=True.
#define METAL_SIM_COUNTED(bytes)                                          \
  extern "C" void __sanitizer_cov_load##bytes(void* address) {            \
    metal_sim::count(address, bytes, false, __builtin_return_address(0)); \
  }                                                                       \
  extern "C" void __sanitizer_cov_store##bytes(void* address) {           \
    metal_sim::count(address, bytes, true, __builtin_return_address(0));  \
  }
METAL_SIM_COUNTED(1)
METAL_SIM_COUNTED(2)
METAL_SIM_COUNTED(4)
METAL_SIM_COUNTED(8)
METAL_SIM_COUNTED(16)

// Conversions to the 16-bit floats that older libgcc lacks, round to nearest even.
extern "C" __bf16 __truncsfbf2(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x)
    bits |= 1u << 22;  // stays NaN, quiet
  else
    bits += 0x7fff + (bits >> 16 & 1);
  return __builtin_bit_cast(__bf16, uint16_t(bits >> 16));
}
