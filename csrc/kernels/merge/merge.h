// The codes of a sliced band (weights/packed.h) as tiles again
//
//   slices  its three, [n_cols / 8, 64], [n_cols / 16, 64], [n_cols / 16, 64]
//   tiles   [n_cols / 4, 64] int8 q - 128
//
// n_cols is a multiple of 32. Between the slices, which come from memory, and a product with many tokens,
// which finds the tiles in the cache.
#pragma once
#include <cstdint>

#include "core/variant.h"

namespace russet {

struct MergeArgs {
  const uint8_t* slices[3];
  int n_cols;
  uint8_t* tiles;
};
using MergeFn = void(const MergeArgs&);
std::span<const Variant<MergeFn>> merge_variants();  // fastest first, "ref" last
void merge(const MergeArgs& args);                   // the best of them on this chip

}  // namespace russet
