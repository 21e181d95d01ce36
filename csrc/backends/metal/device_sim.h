// The simulator as a device: what a pass does on a GPU, done by the CPU, one thing after the other.
//
// What may run at the same time on a GPU it runs in the order `schedule` asks for: the dispatches between two
// barriers forwards (0), backwards (1) or shuffled (from 2 on, a seed), and but for 0 a pass only when it is
// waited for. So a barrier that is missing, and host memory that is changed too early, show as wrong results
// under one of them.
#pragma once
#include <map>

#include "backends/metal/device.h"

namespace russet::metal {

// A mistake of the host to be made on purpose, to see that it is noticed. `at` counts from the first.
struct Fault {
  enum class Kind {
    none,
    swap,     // dispatch `at` has its first two buffers exchanged
    late,     // its last buffer begins a word late; `at` counts the dispatches alone whose last one is there
    shrink,   // dispatch `at` has one threadgroup less, in the first direction that has more than one
    barrier,  // barrier `at` is left out
  } kind = Kind::none;
  uint64_t at = 0;
};

// Bytes that the dispatches of one kernel have read and written, where the libraries were compiled to count:
// in all accesses, and those that are distinct within a dispatch, which is what must come from memory.
struct Traffic {
  uint64_t n_dispatches = 0;
  uint64_t read = 0, read_distinct = 0, written = 0, written_distinct = 0;
};

class SimulatedDevice : public Device {
 public:
  virtual const std::map<std::string, Traffic>& traffic() const = 0;  // by kernel
};

// With the kernels of these libraries, as python/russet/metal_sim compiles them. max_map_bytes: 0: no limit.
std::unique_ptr<SimulatedDevice> simulated_device(const std::vector<std::string>& libraries,
                                                  uint32_t schedule, Fault fault = {},
                                                  size_t max_map_bytes = 0);

}  // namespace russet::metal
