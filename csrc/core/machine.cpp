#include "core/machine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "core/buffer.h"
#include "core/check.h"
#include "core/parallel.h"
#include "core/variant.h"

namespace russet {

static void check_threads(int n_threads) {
  check(n_threads >= 1 && n_threads <= 1024, ErrorKind::usage, "threads: expected 1 to 1024, got ",
        n_threads);
}

// The best of the passes that fit in 0.3 s, and of five at least: the first of them wakes threads and clock,
// and in some others may want the processors as well.
template <typename Work>
static double best_seconds(int n_threads, const Work& work) {
  double best = 1e9, all = 0;
  for (int pass = 0; pass < 5 || all < 0.3; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    parallel(n_threads, work);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::min(best, seconds);
    all += seconds;
  }
  return best;
}

// ---- memory ----

// A thread reads so many streams side by side: a single one waits wherever the prefetcher begins anew. Each
// is whole pages and some lines long, for streams a multiple of 4096 bytes apart share one set of the cache
// and push each other out (22 GB/s instead of 33 on an AMD EPYC, Zen 4).
static constexpr size_t kStreams = 4;
static constexpr size_t kLine = 64, kPage = 4096;

typedef uint64_t Lane __attribute__((vector_size(16)));  // every instruction set here has registers for it

// The exclusive or of all, so that no load can be left out.
static uint64_t read_streams(const char* begin, size_t stream_bytes) {
  const Lane* const p = reinterpret_cast<const Lane*>(begin);
  const size_t stream = stream_bytes / sizeof(Lane);
  Lane all[kStreams] = {};
  for (size_t i = 0; i < stream; i += kLine / sizeof(Lane))
    for (size_t s = 0; s < kStreams; ++s) {
      const Lane* const line = p + s * stream + i;
      all[s] ^= (line[0] ^ line[1]) ^ (line[2] ^ line[3]);
    }
  for (size_t s = 1; s < kStreams; ++s) all[0] ^= all[s];
  return all[0][0] ^ all[0][1];
}

// Far above the last cache, whose lines would otherwise outlive a pass and be read again from there.
static size_t enough_bytes() {
  size_t cache = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  cache = size_t(std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE)));
#endif
  return std::max(size_t(256) << 20, 8 * cache);
}

double read_bandwidth(int n_threads) {
  check_threads(n_threads);
  const size_t stream_bytes = enough_bytes() / size_t(n_threads) / kStreams / kPage * kPage + 5 * kLine;
  const size_t part_bytes = kStreams * stream_bytes;
  const Buffer buffer(size_t(n_threads) * part_bytes);
  const auto part = [&](Share share) { return buffer.bytes() + size_t(share.thread) * part_bytes; };
  // Written first, each part by its reader: pages never written are one page of zeros that stays in cache,
  // and a page lies near the processor that wrote it.
  parallel(n_threads, [&](Share share) { std::memset(part(share), share.thread + 1, part_bytes); });
  const double seconds = best_seconds(n_threads, [&](Share share) {
    const uint64_t all = read_streams(part(share), stream_bytes);
    asm volatile("" ::"r"(all));  // somebody might ask
  });
  return double(buffer.size()) / seconds / 1e9;
}

// ---- products of int8 ----

// n_rounds of kSums independent sums, each one instruction that adds products to a register: more sums than
// an instruction takes cycles, so that none waits for its own last. Returns how many products that were.
//
// Written in assembly, where no compiler can find out that the sums are never read. Only registers that every
// chip of the family has are named, so that this file needs no flags.
using DotsFn = double(long n_rounds);
static constexpr int kSums = 12;

#if defined(__x86_64__)

#define RUSSET_VECTORS                                                                                       \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

// Tiles 0 to 3 are sums of 16 x 16, 4 and 5 are 16 rows of 64 bytes, 6 and 7 their 16 columns.
static double dots_amx(long n_rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shape;
  alignas(64) int8_t ones[16 * 64];
  std::memset(ones, 1, sizeof ones);
  asm volatile("ldtilecfg %0" ::"m"(shape));
  asm volatile(".irp t, 4,5,6,7 \n tileloadd (%0,%1,1), %%tmm\\t \n .endr" ::"r"(ones), "r"(64L) : "memory");
  asm volatile(".irp t, 0,1,2,3 \n tilezero %%tmm\\t \n .endr" ::);
  for (long round = 0; round < n_rounds; ++round)
    asm volatile(
        "tdpbssd %%tmm6, %%tmm4, %%tmm0 \n tdpbssd %%tmm7, %%tmm4, %%tmm1 \n"
        "tdpbssd %%tmm6, %%tmm5, %%tmm2 \n tdpbssd %%tmm7, %%tmm5, %%tmm3" ::);
  asm volatile("tilerelease" ::);
  return double(n_rounds) * 4 * 16 * 16 * 64;
}

static double dots_vnni(long n_rounds) {
  for (long round = 0; round < n_rounds; ++round)
    asm volatile(".irp sum, 0,1,2,3,4,5,6,7,8,9,10,11 \n vpdpbusd %%zmm14, %%zmm15, %%zmm\\sum \n .endr" ::
                     : RUSSET_VECTORS);
  asm volatile("vzeroupper" ::: RUSSET_VECTORS);
  return double(n_rounds) * kSums * 64;
}

static double dots_avx2(long n_rounds) {
  for (long round = 0; round < n_rounds; ++round)
    asm volatile(
        ".irp sum, 0,1,2,3,4,5,6,7,8,9,10,11 \n vpmaddubsw %%ymm14, %%ymm15, %%ymm12 \n"
        "vpmaddwd %%ymm13, %%ymm12, %%ymm12 \n vpaddd %%ymm12, %%ymm\\sum, %%ymm\\sum \n .endr" ::
            : RUSSET_VECTORS);
  asm volatile("vzeroupper" ::: RUSSET_VECTORS);
  return double(n_rounds) * kSums * 32;
}

#elif defined(__aarch64__)

#define RUSSET_VECTORS \
  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23"

// The two instructions as numbers, v<sum>.4s, v20.16b, v21.16b: by name an assembler takes them only with
// flags.
static double dots_i8mm(long n_rounds) {
  for (long round = 0; round < n_rounds; ++round)
    asm volatile(".irp sum, 0,1,2,3,4,5,6,7,16,17,18,19 \n .inst 0x4e95a680 + \\sum \n .endr"  // smmla
                 ::
                     : RUSSET_VECTORS);
  return double(n_rounds) * kSums * 32;
}

static double dots_dotprod(long n_rounds) {
  for (long round = 0; round < n_rounds; ++round)
    asm volatile(".irp sum, 0,1,2,3,4,5,6,7,16,17,18,19 \n .inst 0x4e959680 + \\sum \n .endr"  // sdot
                 ::
                     : RUSSET_VECTORS);
  return double(n_rounds) * kSums * 16;
}

#endif

// What the compiler makes of the plain loop.
static double dots_ref(long n_rounds) {
  constexpr int kBytes = 64;
  int8_t x[kBytes], y[kBytes];
  std::memset(x, 3, sizeof x);
  std::memset(y, 1, sizeof y);
  for (long round = 0; round < n_rounds; ++round) {
    asm volatile("" : "+m"(x), "+m"(y));  // for all it knows they are others now
    int sum = 0;
    for (int i = 0; i < kBytes; ++i) sum += x[i] * y[i];
    asm volatile("" ::"r"(sum));
  }
  return double(n_rounds) * kBytes;
}

static constexpr Variant<DotsFn> kDots[] = {
#if defined(__x86_64__)
    {"amx", kAmx, dots_amx},
    {"vnni", kVnni, dots_vnni},
    {"avx2", kAvx2, dots_avx2},
#elif defined(__aarch64__)
    {"i8mm", kI8mm, dots_i8mm},
    {"dotprod", kDotprod, dots_dotprod},
#endif
    {"ref", kBaseline, dots_ref},
};

double int8_peak(int n_threads) {
  check_threads(n_threads);
  DotsFn* const dots = pick("int8_peak", std::span<const Variant<DotsFn>>(kDots)).run;
  // As many rounds as take some milliseconds, beside which waking the threads is nothing.
  const auto pass_of = [&](long n_rounds) { return [=](Share) { dots(n_rounds); }; };
  const long n_rounds = 1000 + long(1000 * 5e-3 / best_seconds(1, pass_of(1000)));
  const double n_products = double(n_threads) * dots(n_rounds);
  return 2 * n_products / best_seconds(n_threads, pass_of(n_rounds)) / 1e9;
}

}  // namespace russet
