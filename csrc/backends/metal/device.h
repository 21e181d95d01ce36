// Device: what the Metal backend asks of a GPU. Two answer: Apple's (device_apple.cpp) and the simulator
// (device_sim.cpp). All above this interface is the same for both.
//
// The device owns no memory: it is shown ours, page by page, and kernels work in it. A pass is a row of
// dispatches. Those between two barriers may run in any order and at the same time; a barrier makes what was
// written before it visible after it. Passes run one after the other, in the order they were committed.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace russet::metal {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// A kernel ready to run. Belongs to its device.
struct Pipeline {
  const void* handle = nullptr;
  unsigned max_threads = 0;  // in a threadgroup
};

struct Dispatch {
  const Pipeline& pipeline;
  std::span<const std::byte> args;        // buffer 0, copied: the struct of metal/args.h
  std::span<const void* const> pointers;  // buffers 1, 2, ...: into mapped memory; null: the kernel must not
                                          // touch it
  Grid groups, threads;                   // threadgroups, threads in each
};

struct DeviceInfo {
  std::string name;      // "Apple M3 Pro"
  bool simulated;        // by the CPU: right, and of no speed
  size_t working_set;    // bytes it should hold at most; 0: not known
  size_t max_map_bytes;  // of one map() call
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo info() const = 0;

  // Throws Error{device} where there is no such kernel, or the chip cannot run it.
  virtual Pipeline pipeline(const std::string& kernel) = 0;

  // Shows the device [begin, begin + n_bytes), whole pages, which must stay where they are until unmap().
  // Ranges may overlap, but none may lie within another. Throws Error{memory}.
  virtual void map(const void* begin, size_t n_bytes) = 0;
  // Waits for the passes in flight first; what failed in them is for wait() to throw.
  virtual void unmap(const void* begin) = 0;

  virtual void dispatch(const Dispatch& dispatch) = 0;
  virtual void barrier() = 0;

  // Sends off what was dispatched since the last commit; returns the pass's number, counted from 1.
  virtual uint64_t commit() = 0;
  // Returns when the pass is done. Throws Error{device} or Error{memory} where it failed; the passes after it
  // have then failed too, and the next one begins afresh.
  virtual void wait(uint64_t pass) = 0;
  virtual void settle(uint64_t pass) = 0;  // the same, and throws nothing: what failed is another's business
};

// The Mac's GPU, with the kernels of these Metal texts. Throws Error{device}: no Metal, no Apple GPU, or a
// text that does not compile, with the compiler's words. Elsewhere than on a Mac it always throws.
std::unique_ptr<Device> apple_device(const std::vector<std::string>& sources);

}  // namespace russet::metal
