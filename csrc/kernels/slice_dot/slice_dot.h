// sums[g, r] += sum over group g of bits(q[r, c]) x[c], for one slice of a band (weights/packed.h) and one
// token
//
//   slice  bits 4-7 of each q [n_cols / 8, 64], or bits 2-3 or 0-1 [n_cols / 16, 64]
//   bits() those of its bits, where they stand in q: after all slices the sums are those of q x
//   x      [n_cols] int8
//   sums   [n_groups, 16] int32
//
// Exact. Reads the slice once, and is bound by memory.
#pragma once
#include <cstdint>

#include "core/variant.h"

namespace russet {

struct SliceDotArgs {
  const uint8_t* slice;
  int index;  // of the slice, from 0 on
  int n_cols, group_size;
  const int8_t* x;
  int32_t* sums;  // 64-byte aligned

  int shift() const { return 4 - 2 * index; }  // of the lowest of its bits
};
using SliceDotFn = void(const SliceDotArgs&);
std::span<const Variant<SliceDotFn>> slice_dot_variants();  // fastest first, "ref" last
void slice_dot(const SliceDotArgs& args);                   // the best of them on this chip

}  // namespace russet
