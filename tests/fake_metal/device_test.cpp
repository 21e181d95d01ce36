// device_apple.cpp, as it is, against fake_metal.h: what it sends, what it computes, what its errors say, and
// that nothing of Metal's is left behind.
#include "backends/metal/device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "core/check.h"
#include "fake_metal.h"

using namespace russet;
using namespace russet::metal;
using fake_metal::gpu;

#define EXPECT(what) \
  if (!(what)) std::printf("line %d: expected %s\n", __LINE__, #what), std::exit(1)

static constexpr size_t kPage = 16384, kFloats = kPage / sizeof(float);

// Whole pages, zero.
struct Pages {
  explicit Pages(size_t n_pages)
      : floats(static_cast<float*>(std::aligned_alloc(kPage, n_pages * kPage))), n_bytes(n_pages * kPage) {
    std::fill(floats, floats + n_bytes / sizeof(float), 0.0f);
  }
  ~Pages() { std::free(floats); }
  float* floats;
  size_t n_bytes;
};

static const std::vector<std::string> kTexts = {"add 256 wide 1024", "other 64 broken 0"};

static void add(Device& device, const char* kernel, float value, const float* x, float* y, Grid groups = {},
                Grid threads = {}) {
  const Pipeline pipeline = device.pipeline(kernel);
  const void* const pointers[] = {x, y, nullptr};
  device.dispatch({pipeline, std::as_bytes(std::span(&value, 1)), pointers, groups, threads});
}

static std::string error_of(ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT(error.kind == kind);
    return error.what();
  }
  return "none";
}

static bool says(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

static void a_machine_without_an_apple_gpu_is_refused() {
  gpu.is_there = false;
  EXPECT(says(error_of(ErrorKind::device, [] { apple_device({}); }), "no Metal on this machine"));
  gpu.is_there = true;
  gpu.is_apple = false;
  EXPECT(says(error_of(ErrorKind::device, [] { apple_device({}); }),
              "an M1 or newer (family Apple 7), got Radeon"));
}

static void it_says_what_it_is() {
  const DeviceInfo info = apple_device({})->info();
  EXPECT(info.name == "Apple M0" && !info.simulated);
  EXPECT(info.working_set == 12000000000 && info.max_map_bytes == 1 << 20);
}

static void shaders_are_compiled_with_safe_math_on_every_macos() {
  apple_device({"add 1"});
  EXPECT((gpu.history ==
          std::vector<std::string>{"language 196609", "math 0", "functions 1", "residency ends"}));
  gpu = {.macos = 14, .failures = {}, .history = {}};
  apple_device({"add 1"});
  EXPECT((gpu.history == std::vector<std::string>{"language 196609", "fast math 0"}));
}

static void what_metal_refuses_is_named() {
  const auto device = apple_device(kTexts);
  EXPECT(says(error_of(ErrorKind::device, [] { apple_device({"add 1", "!"}); }),
              "program_source:1:1: error: !"));
  EXPECT(says(error_of(ErrorKind::device, [&] { device->pipeline("no"); }),
              "no kernel is called no in the 2 texts"));
  EXPECT(says(error_of(ErrorKind::device, [&] { device->pipeline("broken"); }),
              "Apple M0 cannot run broken: too many registers (Domain 1)"));
  EXPECT(device->pipeline("add").max_threads == 256 && device->pipeline("other").max_threads == 64);
  EXPECT(says(error_of(ErrorKind::device, [&] { add(*device, "other", 0, nullptr, nullptr, {}, {32, 3}); }),
              "other needs 96 threads in a threadgroup, Apple M0 gives it 64"));
}

static void maps_are_checked() {
  const auto device = apple_device({});
  const Pages pages(65);
  const auto map = [&](size_t offset, size_t n_bytes) {
    return [&, offset, n_bytes] { device->map(reinterpret_cast<char*>(pages.floats) + offset, n_bytes); };
  };
  EXPECT(says(error_of(ErrorKind::device, map(64, kPage)), "expected whole pages"));
  EXPECT(says(error_of(ErrorKind::device, map(0, 100)), "expected whole pages"));
  EXPECT(says(error_of(ErrorKind::memory, map(0, pages.n_bytes)), "expected at most 1 MB in one piece"));
  gpu.refuses_buffers = true;
  EXPECT(says(error_of(ErrorKind::memory, map(0, kPage)), "the GPU refuses another 0 MB"));
}

static void kernels_work_where_pointers_point_to() {
  const auto device = apple_device(kTexts);
  const Pages a(3), b(2);
  device->map(a.floats, 2 * kPage);
  device->map(a.floats + kFloats, 2 * kPage);  // shares a page with the one before
  device->map(b.floats, b.n_bytes);
  a.floats[5] = 1, a.floats[6] = 2, a.floats[3 * kFloats - 1] = 7;
  add(*device, "add", 10, a.floats + 5, b.floats + kFloats, {2});
  add(*device, "other", 1, a.floats + 3 * kFloats - 1, b.floats + 3);
  add(*device, "wide", 0.5, nullptr, b.floats + 9);  // null reads as zero
  EXPECT(says(error_of(ErrorKind::device, [&] { add(*device, "add", 0, b.floats, b.floats + 2 * kFloats); }),
              "buffer 2 of add lies at"));
  device->wait(device->commit());
  EXPECT(b.floats[kFloats] == 11 && b.floats[kFloats + 1] == 12 && b.floats[kFloats + 2] == 0);
  EXPECT(b.floats[3] == 8 && b.floats[9] == 0.5);

  device->unmap(b.floats);
  EXPECT(
      says(error_of(ErrorKind::device, [&] { add(*device, "add", 0, b.floats, b.floats); }), "not mapped"));
}

static void a_pass_is_one_concurrent_encoder_with_barriers() {
  const auto device = apple_device(kTexts);
  const Pages pages(1);
  device->map(pages.floats, kPage);
  device->barrier();  // of nothing
  gpu.history.clear();
  add(*device, "add", 1, pages.floats, pages.floats + 1);
  device->barrier();
  add(*device, "wide", 1, pages.floats + 1, pages.floats + 2);
  EXPECT(device->commit() == 1 && device->commit() == 2);
  device->wait(2);
  EXPECT(pages.floats[2] == 2);
  EXPECT((gpu.history == std::vector<std::string>{"pass of type 1", "dispatch add", "barrier 1",
                                                  "dispatch wide", "pass of type 1"}));
}

static void residency_follows_the_maps() {
  const auto device = apple_device({});
  const Pages a(1), b(1);
  device->map(a.floats, kPage);
  device->map(b.floats, kPage);
  device->unmap(a.floats);
  EXPECT((gpu.history == std::vector<std::string>{"resident 1", "resident 2", "resident 1"}));
}

static void a_failed_pass_fails_those_behind_it_and_no_other() {
  const auto device = apple_device(kTexts);
  const Pages pages(1);
  device->map(pages.floats, kPage);
  gpu.failures = {0, 8, 0, 0, 3};
  for (int i = 0; i < 3; ++i) {
    add(*device, "add", 1, pages.floats, pages.floats);
    device->commit();
  }
  device->wait(1);
  EXPECT(says(error_of(ErrorKind::memory, [&] { device->wait(2); }),
              "not enough memory for pass 2: the GPU gave up (Domain 8); close other programs"));
  EXPECT(says(error_of(ErrorKind::memory, [&] { device->wait(3); }), "pass 2"));
  device->wait(1);  // it was well, and still is
  device->wait(device->commit());
  EXPECT(says(error_of(ErrorKind::device, [&] { device->wait(device->commit()); }),
              "pass 5 failed: the GPU gave up (Domain 3)"));
}

static void memory_is_let_go_of_when_passes_have_ended() {
  const auto device = apple_device(kTexts);
  const Pages pages(1);
  device->map(pages.floats, kPage);
  gpu.failures = {0, 3};
  add(*device, "add", 1, pages.floats, pages.floats);
  device->commit();
  device->commit();
  EXPECT(pages.floats[0] == 0);
  device->unmap(pages.floats);
  EXPECT(pages.floats[0] == 1);
  device->wait(1);
  EXPECT(says(error_of(ErrorKind::device, [&] { device->wait(2); }), "pass 2 failed"));
}

static void it_may_go_in_the_middle_of_a_pass() {
  const Pages pages(1);  // is there longer than the device
  const auto device = apple_device(kTexts);
  device->map(pages.floats, kPage);
  add(*device, "add", 1, pages.floats, pages.floats);
  device->commit();
  add(*device, "add", 1, pages.floats, pages.floats);
  EXPECT(pages.floats[0] == 0);  // neither has run
}

int main() {
  const auto run = [](const char* name, void (*test)()) {
    gpu = {};
    std::printf("%s\n", name);
    test();
    EXPECT(fake_metal::n_objects() == 0);
    EXPECT(fake_metal::n_without_a_pool() == 0);
  };
#define RUN(test) run(#test, test)
  RUN(a_machine_without_an_apple_gpu_is_refused);
  RUN(it_says_what_it_is);
  RUN(shaders_are_compiled_with_safe_math_on_every_macos);
  RUN(what_metal_refuses_is_named);
  RUN(maps_are_checked);
  RUN(kernels_work_where_pointers_point_to);
  RUN(a_pass_is_one_concurrent_encoder_with_barriers);
  RUN(residency_follows_the_maps);
  RUN(a_failed_pass_fails_those_behind_it_and_no_other);
  RUN(memory_is_let_go_of_when_passes_have_ended);
  RUN(it_may_go_in_the_middle_of_a_pass);
}
