// Device on the GPU of a Mac, through metal-cpp, where every call is one message to Metal.
//
// Metal counts the owners of its objects. A name with new or alloc hands one over: TransferPtr. Everything
// else belongs to the autorelease pool of the function that asked for it, and lives longer by RetainPtr
// alone. Python's threads have no pool of their own, so each function of the interface opens one.
#if defined(__APPLE__)
#include <unistd.h>

#include <deque>
#include <iterator>
#include <map>
#include <optional>

#include "backends/metal/device.h"
#include "core/check.h"

#define NS_PRIVATE_IMPLEMENTATION  // this file alone holds the names that metal-cpp sends
#define MTL_PRIVATE_IMPLEMENTATION
#define METALCPP_SYMBOL_VISIBILITY_HIDDEN  // libmlx has the same ones
#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>

namespace russet::metal {
namespace {

NS::SharedPtr<NS::AutoreleasePool> autorelease_pool() {
  return NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
}

NS::String* ns_string(const std::string& text) {
  return NS::String::string(text.c_str(), NS::UTF8StringEncoding);
}

std::string words(const NS::Error* error) {
  if (!error) return "Metal does not say why";
  return std::string(error->localizedDescription()->utf8String()) + " (" + error->domain()->utf8String() +
         " " + std::to_string(error->code()) + ")";
}

bool macos_is_at_least(int version) {
  return NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({version, 0, 0});
}

NS::SharedPtr<MTL::Device> find_gpu() {
  auto gpu = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  check(bool(gpu), ErrorKind::device,
        "metal: no Metal on this machine: macOS offers no GPU here, as in some virtual machines; use "
        "backend=\"cpu\"");
  check(gpu->supportsFamily(MTL::GPUFamilyApple7), ErrorKind::device,
        "metal: expected the GPU of an M1 or newer (family Apple 7), got ", gpu->name()->utf8String(),
        "; use backend=\"cpu\"");
  return gpu;
}

// Arithmetic as it is written: nothing reordered, NaN and infinities kept, exp and its kind precise. Metal's
// default is the fast kind.
NS::SharedPtr<MTL::CompileOptions> safe_math() {
  auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
  options->setLanguageVersion(MTL::LanguageVersion3_1);  // macOS 14: the first with bfloat
  if (macos_is_at_least(15)) {
    options->setMathMode(MTL::MathModeSafe);
    options->setMathFloatingPointFunctions(MTL::MathFloatingPointFunctionsPrecise);
  } else {
    options->setFastMathEnabled(false);
  }
  return options;
}

struct Kernel {
  std::string name;
  NS::SharedPtr<MTL::ComputePipelineState> state;
};

struct Range {
  const std::byte* end;
  NS::SharedPtr<MTL::Buffer> buffer;
};

struct Pass {
  uint64_t number;
  NS::SharedPtr<MTL::CommandBuffer> commands;
};

// Passes first to last.
struct Failure {
  uint64_t first, last;
  Error error;
};

Error error_of(const Pass& pass) {
  const NS::Error* error = pass.commands->error();
  if (error && error->code() == MTL::CommandBufferErrorOutOfMemory)
    return {ErrorKind::memory, "metal: the GPU has not enough memory for pass " +
                                   std::to_string(pass.number) + ": " + words(error) +
                                   "; close other programs, or load with a smaller n_ctx"};
  return {ErrorKind::device, "metal: pass " + std::to_string(pass.number) + " failed: " + words(error)};
}

class AppleDevice : public Device {
 public:
  explicit AppleDevice(const std::vector<std::string>& sources) {
    const auto pool = autorelease_pool();
    gpu_ = find_gpu();
    queue_ = NS::TransferPtr(gpu_->newCommandQueue());
    check(bool(queue_), ErrorKind::device, "metal: ", gpu_->name()->utf8String(), " gives no command queue");
    nothing_ = NS::TransferPtr(gpu_->newBuffer(16, MTL::ResourceStorageModeShared));
    check(bool(nothing_), ErrorKind::memory, "metal: the GPU refuses even 16 bytes; close other programs");
    open_residency();
    for (const std::string& source : sources) compile(source);
  }

  ~AppleDevice() override {
    const auto pool = autorelease_pool();
    if (encoder_) encoder_->endEncoding();  // Metal aborts where an open one is dropped
    finish(n_committed_);
    if (residency_) residency_->endResidency();
  }

  DeviceInfo info() const override {
    const auto pool = autorelease_pool();
    return {.name = gpu_->name()->utf8String(),
            .simulated = false,
            .working_set = gpu_->recommendedMaxWorkingSetSize(),
            .max_map_bytes = gpu_->maxBufferLength()};
  }

  Pipeline pipeline(const std::string& name) override {
    const auto pool = autorelease_pool();
    const auto known = kernels_.find(name);
    if (known != kernels_.end()) return pipeline_of(known->second);

    NS::SharedPtr<MTL::Function> function;
    for (const auto& library : libraries_)
      if (!function) function = NS::TransferPtr(library->newFunction(ns_string(name)));
    check(bool(function), ErrorKind::device, "metal: no kernel is called ", name, " in the ",
          libraries_.size(), " texts of russet/metal; reinstall russet");
    NS::Error* error = nullptr;
    auto state = NS::TransferPtr(gpu_->newComputePipelineState(function.get(), &error));
    check(bool(state), ErrorKind::device, "metal: ", gpu_->name()->utf8String(), " cannot run ", name, ": ",
          words(error));
    return pipeline_of(kernels_.emplace(name, Kernel{name, std::move(state)}).first->second);
  }

  void map(const void* begin, size_t n_bytes) override {
    const auto pool = autorelease_pool();
    const auto* first = static_cast<const std::byte*>(begin);
    const size_t page = size_t(getpagesize());
    check(uintptr_t(begin) % page == 0 && n_bytes % page == 0 && n_bytes > 0, ErrorKind::device,
          "metal: expected whole pages of ", page, " bytes, got ", n_bytes, " bytes at ", begin);
    check(n_bytes <= gpu_->maxBufferLength(), ErrorKind::memory, "metal: expected at most ",
          gpu_->maxBufferLength() / 1000000, " MB in one piece, got ", n_bytes / 1000000);
    check(!ranges_.contains(first), ErrorKind::device, "metal: what begins at ", begin, " is mapped already");
    auto buffer = NS::TransferPtr(gpu_->newBuffer(
        begin, n_bytes, MTL::ResourceStorageModeShared | MTL::ResourceHazardTrackingModeTracked, nullptr));
    check(bool(buffer), ErrorKind::memory, "metal: the GPU refuses another ", n_bytes / 1000000,
          " MB; close other programs, or load with a smaller n_ctx");
    if (residency_) {
      residency_->addAllocation(buffer.get());
      residency_->commit();
      residency_->requestResidency();
    }
    ranges_.emplace(first, Range{first + n_bytes, std::move(buffer)});
  }

  void unmap(const void* begin) override {
    const auto pool = autorelease_pool();
    const auto range = ranges_.find(static_cast<const std::byte*>(begin));
    if (range == ranges_.end()) return;
    finish(n_committed_);
    if (residency_) {
      residency_->removeAllocation(range->second.buffer.get());
      residency_->commit();
    }
    ranges_.erase(range);
  }

  void dispatch(const Dispatch& dispatch) override {
    const auto pool = autorelease_pool();
    const Kernel& kernel = *static_cast<const Kernel*>(dispatch.pipeline.handle);
    const Grid &groups = dispatch.groups, &threads = dispatch.threads;
    const uint64_t n_threads = uint64_t(threads.x) * threads.y * threads.z;
    if (n_threads > dispatch.pipeline.max_threads)
      fail(ErrorKind::device, "metal: ", kernel.name, " needs ", n_threads, " threads in a threadgroup, ",
           gpu_->name()->utf8String(), " gives it ", dispatch.pipeline.max_threads);
    open_pass();
    encoder_->setComputePipelineState(kernel.state.get());
    encoder_->setBytes(dispatch.args.data(), dispatch.args.size(), 0);
    for (size_t i = 0; i < dispatch.pointers.size(); ++i) bind(kernel, i + 1, dispatch.pointers[i]);
    encoder_->dispatchThreadgroups(MTL::Size(groups.x, groups.y, groups.z),
                                   MTL::Size(threads.x, threads.y, threads.z));
  }

  void barrier() override {
    if (!encoder_) return;  // nothing to wait for
    const auto pool = autorelease_pool();
    encoder_->memoryBarrier(MTL::BarrierScopeBuffers);
  }

  uint64_t commit() override {
    const auto pool = autorelease_pool();
    open_pass();
    encoder_->endEncoding();
    encoder_.reset();
    commands_->commit();
    in_flight_.push_back({++n_committed_, std::move(commands_)});
    return n_committed_;
  }

  void settle(uint64_t pass) override {
    const auto pool = autorelease_pool();
    finish(pass);
  }

  void wait(uint64_t pass) override {
    const auto pool = autorelease_pool();
    finish(pass);
    if (failure_ && failure_->first <= pass && pass <= failure_->last) throw failure_->error;
  }

 private:
  void compile(const std::string& source) {
    NS::Error* error = nullptr;
    auto library = NS::TransferPtr(gpu_->newLibrary(ns_string(source), safe_math().get(), &error));
    check(bool(library), ErrorKind::device, "metal: Apple's compiler refuses a shader: ", words(error));
    libraries_.push_back(std::move(library));
  }

  static Pipeline pipeline_of(const Kernel& kernel) {
    return {&kernel, unsigned(kernel.state->maxTotalThreadsPerThreadgroup())};
  }

  // From macOS 15 on what is mapped can be kept ready for the GPU; else each pass has to see to it.
  void open_residency() {
    if (!macos_is_at_least(15)) return;
    const auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
    residency_ = NS::TransferPtr(gpu_->newResidencySet(descriptor.get(), nullptr));
    if (residency_) queue_->addResidencySet(residency_.get());
  }

  // Where ranges overlap the one that begins last is taken: it too holds all that begins there.
  void bind(const Kernel& kernel, size_t index, const void* pointer) {
    if (!pointer) return encoder_->setBuffer(nothing_.get(), 0, index);
    const auto* at = static_cast<const std::byte*>(pointer);
    const auto after = ranges_.upper_bound(at);
    const auto range = after == ranges_.begin() ? ranges_.end() : std::prev(after);
    check(range != ranges_.end() && at < range->second.end, ErrorKind::device, "metal: buffer ", index,
          " of ", kernel.name, " lies at ", pointer, ", which is not mapped");
    encoder_->setBuffer(range->second.buffer.get(), size_t(at - range->first), index);
  }

  // Its dispatches may overlap; barriers alone keep them apart.
  void open_pass() {
    if (encoder_) return;
    commands_ = NS::RetainPtr(queue_->commandBuffer());
    check(bool(commands_), ErrorKind::device, "metal: ", gpu_->name()->utf8String(),
          " gives no command buffer");
    encoder_ = NS::RetainPtr(commands_->computeCommandEncoder(MTL::DispatchTypeConcurrent));
    check(bool(encoder_), ErrorKind::device, "metal: ", gpu_->name()->utf8String(), " gives no encoder");
  }

  // Returns when every pass up to this one has ended or, where one of them failed, every pass.
  void finish(uint64_t pass) {
    while (!in_flight_.empty() && in_flight_.front().number <= pass) {
      const Pass& first = in_flight_.front();
      first.commands->waitUntilCompleted();
      if (first.commands->status() == MTL::CommandBufferStatusError) {
        failure_ = Failure{first.number, n_committed_, error_of(first)};
        for (const Pass& other : in_flight_) other.commands->waitUntilCompleted();
        in_flight_.clear();
        return;
      }
      in_flight_.pop_front();
    }
  }

  NS::SharedPtr<MTL::Device> gpu_;
  NS::SharedPtr<MTL::CommandQueue> queue_;
  NS::SharedPtr<MTL::ResidencySet> residency_;  // may be null
  NS::SharedPtr<MTL::Buffer> nothing_;          // bound for null
  std::vector<NS::SharedPtr<MTL::Library>> libraries_;
  std::map<std::string, Kernel> kernels_;
  std::map<const std::byte*, Range> ranges_;    // by where they begin
  NS::SharedPtr<MTL::CommandBuffer> commands_;  // of the pass that is being encoded; null between passes
  NS::SharedPtr<MTL::ComputeCommandEncoder> encoder_;
  std::deque<Pass> in_flight_;
  uint64_t n_committed_ = 0;
  std::optional<Failure> failure_;  // the last one
};

}  // namespace

std::unique_ptr<Device> apple_device(const std::vector<std::string>& sources) {
  return std::make_unique<AppleDevice>(sources);
}

}  // namespace russet::metal
#endif
