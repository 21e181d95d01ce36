// What the Metal headers ask of the scheduler: where the current thread is, and to meet the others.
#pragma once
#include "runtime.h"

namespace metal_sim {

// A place in the Metal text. A default argument `Site site = Site::here()` is the place of the call.
struct Site {
  const char* file;
  uint32_t line, column;
  static constexpr Site here(const char* file = __builtin_FILE(), uint32_t line = __builtin_LINE(),
                             uint32_t column = __builtin_COLUMN()) {
    return {file, line, column};
  }
};

// Everything a thread can ask about its own place.
struct Place {
  uint32_t thread_position_in_grid[3], thread_position_in_threadgroup[3], threadgroup_position_in_grid[3];
  uint32_t threads_per_threadgroup[3], threads_per_grid[3], threadgroups_per_grid[3];
  uint32_t thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  uint32_t simdgroups_per_threadgroup;
};

// What a kernel's arguments are taken from.
struct Bindings {
  void* const* buffers;             // by index
  void* const* threadgroup_memory;  // by index
};

// A kernel as the glue behind the translated text describes it.
struct Kernel {
  MetalSimKernel described;
  void (*run)(const Bindings&);
};

// A variable in threadgroup memory. The records of a library lie one behind the other in a section of their
// own.
struct ThreadgroupVariable {
  const char* function;  // __PRETTY_FUNCTION__ of the kernel that declares it
  void* memory;
  size_t bytes;
};

struct FunctionConstant {
  MetalSimFunctionConstant described;
  void* value;
  bool* defined;
};

enum class Barrier { of_simdgroup, of_threadgroup };

// Written by the glue, read by the scheduler.
extern Kernel kernels[];
extern const uint32_t n_kernels;
extern FunctionConstant function_constants[];
extern const uint32_t n_function_constants;

// While this is set, a kernel that is called says its name and limit with enter_kernel() and returns at once.
extern bool only_naming;
void enter_kernel(const char* function, uint32_t max_threads);

// Set around an atomic access where accesses are counted: atomics alone may be shared by threadgroups.
extern volatile bool in_atomic;

const Place& place();

// All lanes of the SIMD-group meet here, each with a value of `bytes` bytes. Returns the values, one lane
// behind the other; they stay until the SIMD-group meets twice more.
const void* exchange(const void* value, size_t bytes, Site site);

// `memory_ordered`: what was written before is seen behind it, as with any mem_flags but mem_none.
void barrier(Barrier kind, bool memory_ordered, Site site);

// End the run with an error.
[[noreturn]] void fail(const char* what, Site site);
[[noreturn]] void fail_undefined_constant(uint32_t index);

}  // namespace metal_sim
