#include "core/cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>

#include "core/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace russet {

static unsigned detected_features() {
#if defined(__aarch64__)
  return kNeon;  // part of the base architecture
#elif defined(__x86_64__)
  unsigned features = kBaseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    features |= kAvx2;
  if ((features & kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    features |= kAvx512;
  return features;
#else
  return kBaseline;
#endif
}

static unsigned allowed_features() {
  const char* isa = std::getenv("RUSSET_ISA");
  if (!isa || !*isa) return ~0u;
  if (!std::strcmp(isa, "scalar")) return kBaseline;
  if (!std::strcmp(isa, "neon")) return kNeon;
  if (!std::strcmp(isa, "avx2")) return kAvx2;
  if (!std::strcmp(isa, "avx512")) return kAvx2 | kAvx512;
  fail(ErrorKind::usage, "RUSSET_ISA: expected scalar, neon, avx2 or avx512, got '", isa, "'");
}

unsigned cpu_features() {
  static const unsigned features = detected_features() & allowed_features();
  return features;
}

std::vector<std::string> cpu_feature_names() {
  std::vector<std::string> names;
  if (cpu_features() & kNeon) names.push_back("neon");
  if (cpu_features() & kAvx2) names.push_back("avx2");
  if (cpu_features() & kAvx512) names.push_back("avx512");
  return names;
}

std::string cpu_name() {
#if defined(__APPLE__)
  char name[128] = "";
  size_t size = sizeof name;
  if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0) return name;
#elif defined(__x86_64__)
  unsigned words[13] = {};
  if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i)
      __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
    std::string name = reinterpret_cast<const char*>(words);
    name.erase(0, std::min(name.find_first_not_of(' '), name.size()));
    name.erase(name.find_last_not_of(' ') + 1);
    if (!name.empty()) return name;
  }
#endif
  return "unknown";
}

#if defined(__linux__)
// Hyper-threads share one core's vector units, so count the cores among the processors we may run on.
static int n_linux_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return int(cores.size());
}
#endif

int n_physical_cores() {
  int n = 0;
#if defined(__APPLE__)
  size_t size = sizeof n;
  if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, nullptr, 0) != 0) n = 0;
#elif defined(__linux__)
  n = n_linux_cores();
#endif
  return n > 0 ? n : std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace russet
