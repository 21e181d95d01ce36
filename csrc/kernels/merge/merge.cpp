#include "kernels/merge/merge.h"

#include <cstddef>

namespace russet {

// Code by code, as weights/packed.h has them.
static void merge_ref(const MergeArgs& a) {
  for (size_t tile = 0; tile < size_t(a.n_cols / 4); ++tile)
    for (size_t i = 0; i < 64; ++i) {
      const int of_two = int(tile % 2) * 4, of_four = int(tile % 4) * 2;
      const int high = a.slices[0][tile / 2 * 64 + i] >> of_two & 15;
      const int middle = a.slices[1][tile / 4 * 64 + i] >> of_four & 3;
      const int low = a.slices[2][tile / 4 * 64 + i] >> of_four & 3;
      a.tiles[tile * 64 + i] = uint8_t((high << 4 | middle << 2 | low) ^ 0x80);
    }
}

RUSSET_DECLARE_SIMD(merge, MergeArgs);

static constexpr Variant<MergeFn> kVariants[] = {
    RUSSET_SIMD_ROWS(merge)  //
    {"ref", kBaseline, merge_ref},
};

std::span<const Variant<MergeFn>> merge_variants() {
  return kVariants;
}

void merge(const MergeArgs& args) {
  static MergeFn* const run = pick("merge", merge_variants()).run;
  run(args);
}

}  // namespace russet
