// The C interface of a compiled Metal library: what its kernels take, and how one of them is run.
//
// metal_sim.compile() builds one shared library from one Metal text, with the scheduler (runtime.cpp) inside.
// Whoever loads it, Python through ctypes or C++ through dlsym, sees the functions at the end of this file.
// They may be called from several threads: runs of one library wait for each other, runs of two do not.
//
// Plain C++, without extensions: gcc reads it too.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum : uint32_t {
  kMetalSimAbi =
      1,  // grows with every change of what follows; metal_sim_abi() says what a library was built with
  kMetalSimMaxBuffers = 31,
  kMetalSimMaxThreads = 1024,            // of one threadgroup
  kMetalSimMaxThreadgroupBytes = 32768,  // static and dynamic together
  kMetalSimSimdWidth = 32,
};

// What a kernel's argument is bound to, by its attribute.
enum MetalSimArgumentKind : uint32_t {
  kMetalSimBuffer,       // device T* or constant T*: [[buffer(index)]]
  kMetalSimReference,    // constant T& or device T&: [[buffer(index)]] of at least `bytes` bytes
  kMetalSimThreadgroup,  // threadgroup T*: [[threadgroup(index)]]
  kMetalSimPlace,        // where the thread is in the grid; nothing is bound to it
};

struct MetalSimArgument {
  MetalSimArgumentKind kind;
  uint32_t index;  // of the buffer or the threadgroup memory; what it is for kMetalSimPlace is the runtime's
                   // business
  uint32_t optional;  // 1 with a [[function_constant(...)]]: it may be left unbound
  uint32_t writable;  // 1 unless what it points to is const or constant
  uint64_t bytes;     // size of the type it points or refers to
  const char* type;   // as it was written: "device const half*"
  const char* name;
};

struct MetalSimKernel {
  const char* name;  // host_name, or the function's own
  const MetalSimArgument* arguments;
  uint32_t n_arguments;
  uint32_t max_threads;        // [[max_total_threads_per_threadgroup]], or 1024
  uint64_t threadgroup_bytes;  // of the variables it declares, without what the launch adds
};

// constant T name [[function_constant(index)]];
struct MetalSimFunctionConstant {
  const char* name;
  const char* type;
  uint32_t index;
  uint32_t bytes;
};

struct MetalSimBufferBinding {
  void* data;  // null: nothing is bound
  uint64_t bytes;
};

struct MetalSimConstantValue {
  uint32_t index;
  uint32_t bytes;
  const void* value;
};

// Bytes of one buffer that a kernel read or wrote. Counted in libraries that were compiled with count=True.
struct MetalSimTraffic {
  uint64_t read_moved, read_touched;  // the sum over all accesses; the distinct bytes
  uint64_t written_moved, written_touched;
};

struct MetalSimReport {
  uint64_t threads, groups;
  uint64_t barriers;  // threadgroup barriers, once for each threadgroup
  uint64_t simd_ops;  // once for each SIMD-group
  MetalSimTraffic traffic[kMetalSimMaxBuffers];
};

// What went wrong, and where in the Metal text; file is null where that is not known.
struct MetalSimError {
  char text[512];
  const char* file;
  uint32_t line, column;
  int32_t buffer;   // the buffer that was overrun, or -1
  uint32_t has_pc;  // 1 for a bad memory access: `pc` is its instruction, counted from where the library was
                    // loaded
  uint64_t pc;
};

struct MetalSimLaunch {
  const char* kernel;
  const MetalSimBufferBinding* buffers;  // by index; n_buffers of them
  const uint64_t* threadgroup_memory;    // bytes, by index; n_threadgroup_memory of them
  const MetalSimConstantValue* constants;
  uint32_t n_buffers, n_threadgroup_memory, n_constants;
  uint32_t groups[3];   // threadgroups in the grid
  uint32_t threads[3];  // in each of them
  uint32_t
      schedule;  // 0 forward, 1 backward, else the seed of a random order: of groups, SIMD-groups and lanes
  MetalSimReport* report;
  MetalSimError* error;
};

extern "C" {
uint32_t metal_sim_abi();
const MetalSimKernel* metal_sim_kernels(uint32_t* n_kernels);
const MetalSimFunctionConstant* metal_sim_constants(uint32_t* n_constants);

// Runs a kernel to its end. 0, or 1 with `error` filled in: then the buffers hold what had been written until
// then.
int metal_sim_run(const MetalSimLaunch* launch);

// Memory that ends where a page begins that nobody may touch, so that an overrun by one byte is caught.
// Filled with 0xFF, which is NaN in every float type. Null if there is none left.
void* metal_sim_allocate(uint64_t bytes);
void metal_sim_free(void* memory, uint64_t bytes);
}
