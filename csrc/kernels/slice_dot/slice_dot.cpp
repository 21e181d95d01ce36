#include "kernels/slice_dot/slice_dot.h"

#include <cstddef>

namespace russet {

static void slice_dot_ref(const SliceDotArgs& a) {
  const int n_bits = a.index == 0 ? 4 : 2, tiles_in_byte = 8 / n_bits;
  for (int c = 0; c < a.n_cols; ++c)
    for (int r = 0; r < 16; ++r) {
      const uint8_t byte = a.slice[size_t(c / 4 / tiles_in_byte) * 64 + size_t(4 * r + c % 4)];
      const int bits = byte >> (c / 4 % tiles_in_byte * n_bits) & ((1 << n_bits) - 1);
      a.sums[size_t(c / a.group_size) * 16 + size_t(r)] += (bits << a.shift()) * a.x[c];
    }
}

#if defined(__x86_64__)
void slice_dot_vnni(const SliceDotArgs& a);
void slice_dot_avx2(const SliceDotArgs& a);
#elif defined(__aarch64__)
void slice_dot_dotprod(const SliceDotArgs& a);
#endif

static constexpr Variant<SliceDotFn> kVariants[] = {
#if defined(__x86_64__)
    {"vnni", kVnni, slice_dot_vnni},
    {"avx2", kAvx2, slice_dot_avx2},
#elif defined(__aarch64__)
    {"dotprod", kDotprod, slice_dot_dotprod},
#endif
    {"ref", kBaseline, slice_dot_ref},
};

std::span<const Variant<SliceDotFn>> slice_dot_variants() {
  return kVariants;
}

void slice_dot(const SliceDotArgs& args) {
  static SliceDotFn* const run = pick("slice_dot", slice_dot_variants()).run;
  run(args);
}

}  // namespace russet
