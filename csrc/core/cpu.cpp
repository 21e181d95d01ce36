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
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace russet {

namespace {

struct Isa {
  const char* name;
  unsigned feature;
};

}  // namespace

// From the least to the most; a chip has the first few of one of the two.
static constexpr Isa kIsas[] = {
    {"neon", kNeon},     {"dotprod", kDotprod}, {"i8mm", kI8mm}, {"avx2", kAvx2},
    {"avx512", kAvx512}, {"vnni", kVnni},       {"amx", kAmx},
};

#if defined(__x86_64__)
// The registers of AMX are large, so Linux gives them only to a process that asks.
static bool amx_is_granted() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAll = 1u << 22 | 1u << 24 | 1u << 25;  // CPUID.7.0:EDX AMX-BF16, -TILE, -INT8
  if ((edx & kAll) != kAll) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

static unsigned detected_features() {
  unsigned features = kBaseline;
#if defined(__aarch64__)
  features |= kNeon;  // part of the base architecture
#if defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  if (has("hw.optional.arm.FEAT_DotProd")) features |= kDotprod;
  if (has("hw.optional.arm.FEAT_I8MM")) features |= kI8mm;
#elif defined(__linux__)
  if (getauxval(AT_HWCAP) & (1ul << 20)) features |= kDotprod;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP2) & (1ul << 13)) features |= kI8mm;    // HWCAP2_I8MM
#endif
#elif defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    features |= kAvx2;
  if ((features & kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    features |= kAvx512;
  if ((features & kAvx512) && __builtin_cpu_supports("avx512vnni")) features |= kVnni;
  if ((features & kVnni) && amx_is_granted()) features |= kAmx;
#endif
  return features;
}

static unsigned allowed_features() {
  const char* isa = std::getenv("RUSSET_ISA");
  if (!isa || !*isa) return ~0u;
  if (!std::strcmp(isa, "scalar")) return kBaseline;
  unsigned allowed = kBaseline;
  for (const Isa& each : kIsas) {
    if (each.feature == kAvx2) allowed = kBaseline;  // the other family begins
    allowed |= each.feature;
    if (!std::strcmp(isa, each.name)) return allowed;
  }
  fail(ErrorKind::usage, "RUSSET_ISA: expected scalar, neon, dotprod, i8mm, avx2, avx512, vnni or amx, got '",
       isa, "'");
}

unsigned cpu_features() {
  static const unsigned features = detected_features() & allowed_features();
  return features;
}

std::vector<std::string> cpu_feature_names() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas)
    if (cpu_features() & isa.feature) names.push_back(isa.name);
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
