#include "backends/metal/device_sim.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "core/check.h"
#include "metal_sim/cxx/runtime.h"

namespace russet::metal {

namespace {

class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    check(handle_ != nullptr, ErrorKind::device, "metal-sim: ", path, " cannot be loaded: ", dlerror());
    check(function<uint32_t()>("metal_sim_abi")() == kMetalSimAbi, ErrorKind::device, "metal-sim: ", path,
          " was compiled by another version of russet; delete it");
    run = function<int(const MetalSimLaunch*)>("metal_sim_run");
    kernels = function<const MetalSimKernel*(uint32_t*)>("metal_sim_kernels")(&n_kernels);
  }
  Library(const Library&) = delete;
  ~Library() { dlclose(handle_); }

  int (*run)(const MetalSimLaunch*);
  const MetalSimKernel* kernels;
  uint32_t n_kernels = 0;

 private:
  template <typename F>
  F* function(const char* name) const {
    void* symbol = dlsym(handle_, name);
    check(symbol != nullptr, ErrorKind::device, "metal-sim: a library without ", name);
    return reinterpret_cast<F*>(symbol);
  }
  void* handle_;
};

struct Kernel {
  const Library& library;
  const MetalSimKernel& described;
};

struct Recorded {
  const Kernel* kernel;
  std::vector<std::byte> args;
  std::vector<MetalSimBufferBinding> buffers;
  Grid groups, threads;
};

// Passes first to last.
struct Failure {
  uint64_t first = 1, last = 0;
  std::string text;
};

// Dispatches that no barrier parts.
using Stage = std::vector<Recorded>;

class Simulated : public SimulatedDevice {
 public:
  Simulated(const std::vector<std::string>& paths, uint32_t schedule, Fault fault, size_t max_map_bytes)
      : schedule_(schedule),
        fault_(fault),
        max_map_bytes_(max_map_bytes ? max_map_bytes : SIZE_MAX),
        random_(schedule) {
    for (const std::string& path : paths) {
      const Library& library = *libraries_.emplace_back(std::make_unique<Library>(path));
      for (uint32_t i = 0; i < library.n_kernels; ++i)
        kernels_.emplace(library.kernels[i].name, Kernel{library, library.kernels[i]});
    }
    page_bytes_ = size_t(sysconf(_SC_PAGESIZE));
    nothing_ = mmap(nullptr, page_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(nothing_ != MAP_FAILED, ErrorKind::memory, "metal-sim: no memory");
  }
  ~Simulated() override { munmap(nothing_, page_bytes_); }

  DeviceInfo info() const override { return {"simulated by the CPU", true, 0, max_map_bytes_}; }

  Pipeline pipeline(const std::string& name) override {
    const auto found = kernels_.find(name);
    check(found != kernels_.end(), ErrorKind::device, "metal: there is no kernel ", name);
    return {&found->second, found->second.described.max_threads};
  }

  void map(const void* begin, size_t n_bytes) override {
    const auto* first = static_cast<const std::byte*>(begin);
    check(reinterpret_cast<uintptr_t>(begin) % page_bytes_ == 0 && n_bytes % page_bytes_ == 0,
          ErrorKind::device, "metal: only whole pages can be mapped");
    check(n_bytes <= max_map_bytes_, ErrorKind::memory, "metal: expected at most ", max_map_bytes_ / 1000,
          " kB in one piece, got ", n_bytes / 1000);
    ranges_[first] = first + n_bytes;
  }
  void unmap(const void* begin) override {
    run_until(n_committed_);
    ranges_.erase(static_cast<const std::byte*>(begin));
  }

  void dispatch(const Dispatch& d) override {
    Recorded recorded{static_cast<const Kernel*>(d.pipeline.handle),
                      {d.args.begin(), d.args.end()},
                      {{}},
                      d.groups,
                      d.threads};
    for (const void* pointer : d.pointers) recorded.buffers.push_back(binding(pointer, *recorded.kernel));
    const bool counts = fault_.kind != Fault::Kind::late || recorded.buffers.back().bytes > 0;
    if (counts && fault_.at == n_dispatches_++) plant(recorded);
    pass_.back().push_back(std::move(recorded));
  }
  void barrier() override {
    if (fault_.kind == Fault::Kind::barrier && fault_.at == n_barriers_++) return;
    pass_.emplace_back();
  }

  uint64_t commit() override {
    waiting_.push_back(std::exchange(pass_, std::vector<Stage>(1)));
    ++n_committed_;
    if (schedule_ == 0) run_until(n_committed_);
    return n_committed_;
  }
  void settle(uint64_t pass) override { run_until(pass); }
  void wait(uint64_t pass) override {
    run_until(pass);
    if (failure_.first <= pass && pass <= failure_.last) fail(ErrorKind::device, failure_.text);
  }

  const std::map<std::string, Traffic>& traffic() const override { return traffic_; }

 private:
  void plant(Recorded& r) const {
    if (fault_.kind == Fault::Kind::swap && r.buffers.size() > 2) std::swap(r.buffers[1], r.buffers[2]);
    if (fault_.kind == Fault::Kind::late) {
      MetalSimBufferBinding& last = r.buffers.back();
      last = {static_cast<std::byte*>(last.data) + sizeof(uint32_t), last.bytes - sizeof(uint32_t)};
    }
    if (fault_.kind == Fault::Kind::shrink) {
      unsigned* sizes[] = {&r.groups.x, &r.groups.y, &r.groups.z};
      for (unsigned* size : sizes)
        if (*size > 1) return void(--*size);
      r.groups = {0, 0, 0};  // the only one
    }
  }

  MetalSimBufferBinding binding(const void* pointer, const Kernel& kernel) const {
    if (!pointer) return {nothing_, 0};
    const auto* at = static_cast<const std::byte*>(pointer);
    auto range = ranges_.upper_bound(at);
    check(range != ranges_.begin() && at < (--range)->second, ErrorKind::device,
          "metal: ", kernel.described.name, ": memory the device was not shown");
    return {const_cast<std::byte*>(at), uint64_t(range->second - at)};
  }

  void run_until(uint64_t pass) {
    while (n_done_ < pass) {
      ++n_done_;
      for (Stage& stage : waiting_.front())
        if (n_done_ > failure_.last) run(stage);
      waiting_.erase(waiting_.begin());
    }
  }

  void run(Stage& stage) {
    if (schedule_ == 1) std::reverse(stage.begin(), stage.end());
    if (schedule_ > 1) std::shuffle(stage.begin(), stage.end(), random_);
    for (Recorded& r : stage) {
      if (r.groups.x == 0) continue;  // a planted fault
      r.buffers[0] = {r.args.data(), r.args.size()};
      MetalSimError error{};
      MetalSimReport report{};
      MetalSimLaunch launch{};
      launch.kernel = r.kernel->described.name;
      launch.buffers = r.buffers.data();
      launch.n_buffers = uint32_t(r.buffers.size());
      const unsigned groups[] = {r.groups.x, r.groups.y, r.groups.z};
      const unsigned threads[] = {r.threads.x, r.threads.y, r.threads.z};
      std::copy_n(groups, 3, launch.groups);
      std::copy_n(threads, 3, launch.threads);
      launch.schedule = schedule_;
      launch.report = &report;
      launch.error = &error;
      if (r.kernel->library.run(&launch) != 0) {
        failure_ = {n_done_, n_committed_, std::string("metal-sim: ") + launch.kernel + ": " + error.text};
        if (error.file)
          failure_.text += std::string(" (") + error.file + ":" + std::to_string(error.line) + ")";
        return;
      }
      count(launch.kernel, report);
    }
  }

  void count(const char* kernel, const MetalSimReport& report) {
    Traffic& total = traffic_[kernel];
    ++total.n_dispatches;
    for (const MetalSimTraffic& t : report.traffic) {
      total.read += t.read_moved;
      total.read_distinct += t.read_touched;
      total.written += t.written_moved;
      total.written_distinct += t.written_touched;
    }
  }

  const uint32_t schedule_;
  const Fault fault_;
  const size_t max_map_bytes_;
  uint64_t n_dispatches_ = 0, n_barriers_ = 0;
  std::map<std::string, Traffic> traffic_;
  std::mt19937 random_;
  size_t page_bytes_;
  void* nothing_;  // a page nobody may touch, in place of absent buffers
  std::vector<std::unique_ptr<Library>> libraries_;
  std::map<std::string, Kernel> kernels_;
  std::map<const std::byte*, const std::byte*> ranges_;  // begin -> end
  std::vector<Stage> pass_ = std::vector<Stage>(1);
  std::vector<std::vector<Stage>> waiting_;
  uint64_t n_committed_ = 0, n_done_ = 0;
  Failure failure_;  // the last one
};

}  // namespace

std::unique_ptr<SimulatedDevice> simulated_device(const std::vector<std::string>& libraries,
                                                  uint32_t schedule, Fault fault, size_t max_map_bytes) {
  return std::make_unique<Simulated>(libraries, schedule, fault, max_map_bytes);
}

}  // namespace russet::metal
