#include "kernels/attention/attention_int8.h"

#include "core/simd.h"

// The reference is the same steps on plain numbers.
namespace russet {
namespace {

struct Ints {
  int32_t sums[Vec::width];
};
constexpr int kOffset = 0, kTileRows = 0;

inline Ints dot(Ints sums, int32_t four, const int8_t* tile) {
  int8_t bytes[4];
  std::memcpy(bytes, &four, 4);
  for (int i = 0; i < Vec::width; ++i)
    for (int u = 0; u < 4; ++u) sums.sums[i] += bytes[u] * tile[4 * i + u];
  return sums;
}
inline Vec to_floats(Ints sums) {
  float floats[Vec::width];
  for (int i = 0; i < Vec::width; ++i) floats[i] = float(sums.sums[i]);
  return load(floats);
}
inline void to_bytes(Vec a, int8_t* bytes) {
  float floats[Vec::width];
  store(floats, a);
  for (int i = 0; i < Vec::width; ++i) bytes[i] = std::fabs(floats[i]) <= 127 ? int8_t(floats[i]) : int8_t(0);
}
inline void interleave(const int8_t* rows, int stride, int n, int8_t* tile) {
  for (int i = 0; i < n; ++i)
    for (int u = 0; u < 4; ++u) tile[4 * i + u] = rows[u * stride + i];
}

}  // namespace
}  // namespace russet

#include "kernels/attention/attention_int8_steps.h"

namespace russet {

static void attention_sage_ref(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<false>(args, of_keys, partial);
}
static void attention_integer_ref(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run<true>(args, of_keys, partial);
}

#if defined(__x86_64__)
AttentionFn attention_sage_amx, attention_integer_amx, attention_sage_vnni, attention_integer_vnni;
#elif defined(__aarch64__)
AttentionFn attention_sage_dotprod, attention_integer_dotprod;
#endif

static constexpr Variant<AttentionFn> kSage[] = {
#if defined(__x86_64__)
    {"amx", kNeedsAmx, attention_sage_amx},
    {"vnni", kVnni, attention_sage_vnni},
#elif defined(__aarch64__)
    {"dotprod", kDotprod, attention_sage_dotprod},
#endif
    {"ref", kBaseline, attention_sage_ref},
};
static constexpr Variant<AttentionFn> kInteger[] = {
#if defined(__x86_64__)
    {"amx", kNeedsAmx, attention_integer_amx},
    {"vnni", kVnni, attention_integer_vnni},
#elif defined(__aarch64__)
    {"dotprod", kDotprod, attention_integer_dotprod},
#endif
    {"ref", kBaseline, attention_integer_ref},
};

std::span<const Variant<AttentionFn>> attention_variants(AttentionKind kind) {
  if (kind == AttentionKind::sage) return kSage;
  if (kind == AttentionKind::integer) return kInteger;
  return attention_variants();
}

AttentionFn& attention_of(AttentionKind kind) {
  static constexpr const char* kNames[] = {"attention", "attention_sage", "attention_integer"};
  return *pick(kNames[size_t(kind)], attention_variants(kind)).run;
}

}  // namespace russet
