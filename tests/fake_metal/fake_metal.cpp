#include "fake_metal.h"

#include <objc/message.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

namespace fake_metal {

Gpu gpu;

// ---- Objective-C ----

using Methods = std::map<std::string_view, void*>;

template <typename F>
void* method(F function) {
  return reinterpret_cast<void*>(+function);  // (receiver, its name, arguments)
}

static int n_alive = 0, n_poolless = 0;
int n_objects() {
  return n_alive;
}
int n_without_a_pool() {
  return n_poolless;
}

struct Object {
  explicit Object(const char* name) : name(name) { ++n_alive; }
  virtual ~Object() { --n_alive; }
  virtual const Methods& methods() const = 0;
  const char* name;  // of its class
  int n_owners = 1;
};

// Keeps what it is given as long as it lives itself.
template <typename T>
struct Kept {
  Kept(T* object) : object(object) {
    if (object) ++object->n_owners;
  }
  Kept(const Kept& other) : Kept(other.object) {}
  Kept& operator=(Kept other) {
    std::swap(object, other.object);
    return *this;
  }
  ~Kept() {
    if (object && --object->n_owners == 0) delete object;
  }
  T* operator->() const { return object; }
  T* object;
};

struct Pool : Object {
  Pool() : Object("NSAutoreleasePool") { open().push_back(this); }
  ~Pool() {
    if (open().back() != this) std::puts("pools are nested wrongly"), std::abort();
    open().pop_back();
    for (Object* object : objects)
      if (--object->n_owners == 0) delete object;
  }
  const Methods& methods() const override {
    static const Methods none;
    return none;
  }
  static std::vector<Pool*>& open() {
    static std::vector<Pool*> pools;
    return pools;
  }
  std::vector<Object*> objects;
};

template <typename T>
T* autoreleased(T* object) {
  if (Pool::open().empty()) {
    ++n_poolless;
  } else {
    Pool::open().back()->objects.push_back(object);
  }
  return object;
}

static const Methods kEveryObject = {
    {"init", method([](Object* self, SEL) { return self; })},
    {"retain", method([](Object* self, SEL) { return ++self->n_owners, self; })},
    {"release", method([](Object* self, SEL) {
       if (--self->n_owners == 0) delete self;
     })},
    {"respondsToSelector:",
     method([](Object* self, SEL, SEL name) { return self->methods().contains(name); })},
};

// What objc_msgSend jumps to.
extern "C" void* fake_metal_method(Object* self, SEL name) {
  if (!self) return method([](Object*, SEL) { return uint64_t(0); });
  for (const Methods* methods : {&self->methods(), &kEveryObject})
    if (const auto found = methods->find(name); found != methods->end()) return found->second;
  std::printf("%s does not understand %s\n", self->name, name);
  std::abort();
}

// ---- Foundation ----

struct String : Object {
  explicit String(std::string text) : Object("NSString"), text(std::move(text)) {}
  const Methods& methods() const override {
    static const Methods all = {{"UTF8String", method([](String* self, SEL) { return self->text.c_str(); })}};
    return all;
  }
  std::string text;
};

struct Failed : Object {
  Failed(std::string words, long code) : Object("NSError"), words(std::move(words)), code(code) {}
  const Methods& methods() const override {
    static const Methods all = {
        {"localizedDescription",
         method([](Failed* self, SEL) { return autoreleased(new String(self->words)); })},
        {"domain", method([](Failed*, SEL) { return autoreleased(new String("Domain")); })},
        {"code", method([](Failed* self, SEL) { return self->code; })},
    };
    return all;
  }
  std::string words;
  long code;
};

struct Version {
  long major, minor, patch;
};

struct Process : Object {
  Process() : Object("NSProcessInfo") {}
  const Methods& methods() const override {
    static const Methods all = {
        {"isOperatingSystemAtLeastVersion:",
         method([](Process*, SEL, Version version) { return gpu.macos >= version.major; })}};
    return all;
  }
};

// ---- Metal ----

static void happened(std::string what) {
  gpu.history.push_back(std::move(what));
}

struct Size {
  unsigned long x, y, z;
};

struct Buffer : Object {
  Buffer(void* begin, size_t n_bytes)
      : Object("MTLBuffer"), begin(static_cast<char*>(begin)), n_bytes(n_bytes) {}
  const Methods& methods() const override { return kEveryObject; }
  char* begin;
  size_t n_bytes;
};

struct OwnBuffer : Buffer {
  explicit OwnBuffer(size_t n_bytes) : Buffer(std::calloc(n_bytes, 1), n_bytes) {}
  ~OwnBuffer() { std::free(begin); }
};

struct Options : Object {
  Options() : Object("MTLCompileOptions") {}
  const Methods& methods() const override {
    static const auto told = [](const char* what, long value) {
      happened(what + (" " + std::to_string(value)));
    };
    static const Methods all = {
        {"setLanguageVersion:", method([](Options*, SEL, long value) { told("language", value); })},
        {"setMathMode:", method([](Options*, SEL, long value) { told("math", value); })},
        {"setMathFloatingPointFunctions:",
         method([](Options*, SEL, long value) { told("functions", value); })},
        {"setFastMathEnabled:", method([](Options*, SEL, bool value) { told("fast math", value); })},
    };
    return all;
  }
};

struct Kernel : Object {  // a function and its pipeline
  Kernel(std::string text, unsigned long max_threads)
      : Object("MTLComputePipelineState"), text(std::move(text)), max_threads(max_threads) {}
  const Methods& methods() const override {
    static const Methods all = {
        {"maxTotalThreadsPerThreadgroup", method([](Kernel* self, SEL) { return self->max_threads; })}};
    return all;
  }
  std::string text;
  unsigned long max_threads;
};

struct Library : Object {
  explicit Library(const std::string& text) : Object("MTLLibrary") {
    std::istringstream lines(text);
    for (std::string name; lines >> name;) lines >> kernels[name];
  }
  const Methods& methods() const override {
    static const Methods all = {
        {"newFunctionWithName:", method([](Library* self, SEL, String* name) -> Kernel* {
           const auto found = self->kernels.find(name->text);
           return found == self->kernels.end() ? nullptr : new Kernel(found->first, found->second);
         })}};
    return all;
  }
  std::map<std::string, unsigned long> kernels;
};

struct Residency : Object {
  Residency() : Object("MTLResidencySet") {}
  const Methods& methods() const override {
    static const Methods all = {
        {"addAllocation:", method([](Residency* self, SEL, Buffer* b) { self->buffers.emplace(b, b); })},
        {"removeAllocation:", method([](Residency* self, SEL, Buffer* b) { self->buffers.erase(b); })},
        {"commit",
         method([](Residency* self, SEL) { happened("resident " + std::to_string(self->buffers.size())); })},
        {"requestResidency", method([](Residency*, SEL) {})},
        {"endResidency", method([](Residency*, SEL) { happened("residency ends"); })},
    };
    return all;
  }
  std::map<Buffer*, Kept<Buffer>> buffers;
};

struct ResidencyDescriptor : Object {
  ResidencyDescriptor() : Object("MTLResidencySetDescriptor") {}
  const Methods& methods() const override { return kEveryObject; }
};

// What was encoded, run when it is waited for.
struct Commands : Object {
  Commands() : Object("MTLCommandBuffer") {}
  const Methods& methods() const override;
  void run() {
    if (!is_committed) std::puts("a pass that was never committed is waited for"), std::abort();
    if (failure == 0)
      for (const auto& step : steps) step();
    steps.clear();
  }
  std::vector<std::function<void()>> steps;
  bool is_encoding = false, is_committed = false;
  int failure = 0;
};

struct Place {
  Kept<Buffer> buffer;
  size_t offset;
};

struct Encoder : Object {
  explicit Encoder(Commands* commands) : Object("MTLComputeCommandEncoder"), commands(commands) {
    commands->is_encoding = true;
  }
  ~Encoder() {
    if (commands->is_encoding) std::puts("an encoder is dropped before it has ended"), std::abort();
  }
  const Methods& methods() const override {
    static const Methods all = {
        {"setComputePipelineState:",
         method([](Encoder* self, SEL, Kernel* kernel) { self->kernel = kernel; })},
        {"setBytes:length:atIndex:",
         method([](Encoder* self, SEL, const void* bytes, unsigned long n_bytes, unsigned long index) {
           if (index != 0 || n_bytes != sizeof self->add) std::puts("these are no arguments"), std::abort();
           std::memcpy(&self->add, bytes, n_bytes);
         })},
        {"setBuffer:offset:atIndex:",
         method([](Encoder* self, SEL, Buffer* buffer, unsigned long offset, unsigned long index) {
           self->places.insert_or_assign(index, Place{buffer, offset});
         })},
        {"dispatchThreadgroups:threadsPerThreadgroup:",
         method([](Encoder* self, SEL, Size groups, Size threads) { self->dispatch(groups, threads); })},
        {"memoryBarrierWithScope:",
         method([](Encoder*, SEL, unsigned long scope) { happened("barrier " + std::to_string(scope)); })},
        {"endEncoding", method([](Encoder* self, SEL) { self->commands->is_encoding = false; })},
    };
    return all;
  }
  void dispatch(Size groups, Size threads) {
    happened("dispatch " + kernel->text);
    const size_t n = groups.x * groups.y * groups.z * threads.x * threads.y * threads.z;
    commands->steps.push_back([x = places.at(1), y = places.at(2), add = add, n] {
      const auto at = [](const Place& place, size_t i) -> float& {
        const size_t byte = place.offset + i * sizeof(float);
        if (byte + sizeof(float) > place.buffer->n_bytes) std::puts("outside of a buffer"), std::abort();
        return *reinterpret_cast<float*>(place.buffer->begin + byte);
      };
      for (size_t i = 0; i < n; ++i) at(y, i) = at(x, i) + add;
    });
  }
  Kept<Commands> commands;
  Kept<Kernel> kernel = nullptr;
  std::map<unsigned long, Place> places;
  float add = 0;
};

const Methods& Commands::methods() const {
  static const Methods all = {
      {"computeCommandEncoderWithDispatchType:", method([](Commands* self, SEL, unsigned long type) {
         happened("pass of type " + std::to_string(type));
         return autoreleased(new Encoder(self));
       })},
      {"commit", method([](Commands* self, SEL) {
         if (self->is_encoding) std::puts("a pass is committed while it is encoded"), std::abort();
         self->is_committed = true;
         if (gpu.failures.empty()) return;
         self->failure = gpu.failures.front();
         gpu.failures.erase(gpu.failures.begin());
       })},
      {"waitUntilCompleted", method([](Commands* self, SEL) { self->run(); })},
      {"status", method([](Commands* self, SEL) { return self->failure ? 5ul : 4ul; })},
      {"error", method([](Commands* self, SEL) -> Failed* {
         return self->failure ? autoreleased(new Failed("the GPU gave up", self->failure)) : nullptr;
       })},
  };
  return all;
}

struct Queue : Object {
  Queue() : Object("MTLCommandQueue") {}
  const Methods& methods() const override {
    static const Methods all = {
        {"commandBuffer", method([](Queue*, SEL) { return autoreleased(new Commands); })},
        {"addResidencySet:",
         method([](Queue* self, SEL, Residency* set) { self->residency.push_back(set); })},
    };
    return all;
  }
  std::vector<Kept<Residency>> residency;
};

struct Device : Object {
  Device() : Object("MTLDevice") {}
  const Methods& methods() const override {
    static const Methods all = {
        {"name",
         method([](Device*, SEL) { return autoreleased(new String(gpu.is_apple ? "Apple M0" : "Radeon")); })},
        {"supportsFamily:", method([](Device*, SEL, long family) { return gpu.is_apple && family == 1007; })},
        {"recommendedMaxWorkingSetSize", method([](Device*, SEL) { return 12000000000ul; })},
        {"maxBufferLength", method([](Device*, SEL) { return 1ul << 20; })},
        {"newCommandQueue", method([](Device*, SEL) { return new Queue; })},
        {"newBufferWithLength:options:",
         method([](Device*, SEL, unsigned long n_bytes, unsigned long) { return new OwnBuffer(n_bytes); })},
        {"newBufferWithBytesNoCopy:length:options:deallocator:",
         method([](Device*, SEL, void* begin, unsigned long n_bytes, unsigned long, void*) -> Buffer* {
           return gpu.refuses_buffers ? nullptr : new Buffer(begin, n_bytes);
         })},
        {"newLibraryWithSource:options:error:",
         method([](Device*, SEL, String* source, Options*, Failed** error) -> Library* {
           if (source->text.find('!') == std::string::npos) return new Library(source->text);
           *error = autoreleased(new Failed("program_source:1:1: error: !", 3));
           return nullptr;
         })},
        {"newComputePipelineStateWithFunction:error:",
         method([](Device*, SEL, Kernel* function, Failed** error) -> Kernel* {
           if (function->max_threads > 0) return new Kernel(function->text, function->max_threads);
           *error = autoreleased(new Failed("too many registers", 1));
           return nullptr;
         })},
        {"newResidencySetWithDescriptor:error:",
         method([](Device*, SEL, Object*, Failed**) { return new Residency; })},
    };
    return all;
  }
};

// ---- classes: objects that make others; they live as long as the program ----

struct Class : Object {
  Class(const char* name, Methods makers) : Object(name), makers(std::move(makers)) { --n_alive; }
  ~Class() { ++n_alive; }
  const Methods& methods() const override { return makers; }
  Methods makers;
};

template <typename T>
Methods allocates() {
  return {{"alloc", method([](Class*, SEL) { return new T; })}};
}

}  // namespace fake_metal

using namespace fake_metal;

extern "C" {

SEL sel_registerName(const char* name) {
  static std::set<std::string> names;
  return names.insert(name).first->c_str();
}

objc_object* objc_lookUpClass(const char* name) {
  static std::map<std::string_view, Class> classes;
  if (classes.empty()) {
    const auto add = [](const char* name, Methods makers) {
      classes.try_emplace(name, name, std::move(makers));
    };
    add("NSAutoreleasePool", allocates<Pool>());
    add("MTLCompileOptions", allocates<Options>());
    add("MTLResidencySetDescriptor", allocates<ResidencyDescriptor>());
    add("NSString", {{"stringWithCString:encoding:", method([](Class*, SEL, const char* text, unsigned long) {
                        return autoreleased(new String(text));
                      })}});
    add("NSProcessInfo", {{"processInfo", method([](Class*, SEL) { return autoreleased(new Process); })}});
  }
  const auto found = classes.find(name);
  return found == classes.end() ? nullptr : reinterpret_cast<objc_object*>(&found->second);
}

Protocol* objc_getProtocol(const char*) {
  return nullptr;
}

void* MTLCreateSystemDefaultDevice() {
  return gpu.is_there ? new Device : nullptr;
}

// Never called: metal-cpp wants them to be there.
void MTLCopyAllDevices() {
  std::abort();
}
void MTLCopyAllDevicesWithObserver() {
  std::abort();
}
void MTLRemoveDeviceObserver() {
  std::abort();
}
void objc_msgSend_stret() {
  std::abort();
}
void objc_msgSend_fpret() {
  std::abort();
}
void _Block_object_assign() {
  std::abort();
}
void _Block_object_dispose() {
  std::abort();
}
void* _NSConcreteStackBlock[32];
}

// Finds the method, then jumps to it with all arguments as they came.
#if defined(__x86_64__)
asm(R"(
.globl objc_msgSend
objc_msgSend:
  push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; push %rax
  call fake_metal_method
  mov %rax, %r11
  pop %rax; pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi
  jmp *%r11
)");
#elif defined(__aarch64__)
asm(R"(
.globl objc_msgSend
objc_msgSend:
  stp x29, x30, [sp, #-80]!
  stp x0, x1, [sp, #16]
  stp x2, x3, [sp, #32]
  stp x4, x5, [sp, #48]
  stp x6, x7, [sp, #64]
  bl fake_metal_method
  mov x16, x0
  ldp x0, x1, [sp, #16]
  ldp x2, x3, [sp, #32]
  ldp x4, x5, [sp, #48]
  ldp x6, x7, [sp, #64]
  ldp x29, x30, [sp], #80
  br x16
)");
#endif
