// A host in plain C++: runs two kernels of kernels.metal through the C interface, and a fault. Prints what
// went wrong. test_metal_sim_arm64.py builds it with the kernels for arm64, where an emulator runs it.
#include <stdio.h>
#include <string.h>

#include "runtime.h"

static int failures = 0;

static void check(bool holds, const char* what) {
  if (holds) return;
  printf("failed: %s\n", what);
  ++failures;
}

static MetalSimReport report;
static MetalSimError error;

static int run(const char* kernel, const MetalSimBufferBinding* buffers, uint32_t n_buffers,
               uint32_t n_threads, uint32_t schedule) {
  MetalSimLaunch launch = {};
  launch.kernel = kernel;
  launch.buffers = buffers;
  launch.n_buffers = n_buffers;
  for (int d = 0; d < 3; ++d) launch.groups[d] = launch.threads[d] = 1;
  launch.threads[0] = n_threads;
  launch.schedule = schedule;
  launch.report = &report;
  launch.error = &error;
  return metal_sim_run(&launch);
}

int main() {
  check(metal_sim_abi() == kMetalSimAbi, "the library is of this version");
  uint32_t n_kernels = 0;
  metal_sim_kernels(&n_kernels);
  check(n_kernels == 3, "three kernels");
  for (uint32_t schedule = 0; schedule < 5; ++schedule) {
    constexpr uint32_t n = 1000;
    float* x = static_cast<float*>(metal_sim_allocate(n * sizeof(float)));
    float sum = -1;
    for (uint32_t i = 0; i < n; ++i) x[i] = float(i % 7);
    uint32_t size = n;
    const MetalSimBufferBinding row[] = {{x, n * sizeof(float)}, {&sum, sizeof sum}, {&size, sizeof size}};
    check(run("row_sum_f32", row, 3, 96, schedule) == 0, error.text);
    check(sum == 2997 && report.barriers == 1 && report.simd_ops == 6, "row_sum_f32");

    float a[16][8], c[16][16];
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 8; ++k) a[i][k] = float(i - 2 * k);
    size = 8;
    const MetalSimBufferBinding product[] = {
        {a, sizeof a}, {a, sizeof a}, {c, sizeof c}, {&size, sizeof size}};
    check(run("matrices_f32", product, 4, 32, schedule) == 0, error.text);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) {
        float expected = 0;
        for (int k = 0; k < 8; ++k) expected += a[i][k] * a[j][k];
        check(c[i][j] == expected, "matrices_f32");
      }

    size = n + 1;
    const MetalSimBufferBinding over[] = {{x, n * 4}, {x, n * 4}, {x, n * 4}, {&size, sizeof size}};
    check(
        run("add", over, 4, 1001, schedule) == 1 && strstr(error.text, "outside buffer") && error.buffer <= 2,
        "an overrun is caught");
    metal_sim_free(x, n * sizeof(float));
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
