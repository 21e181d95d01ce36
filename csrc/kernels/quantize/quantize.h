// Activations to int8, per token and group, at run time:
//
//   scale[t, g] = max |x[t, c]| / 127      codes[t, c] = round(x[t, c] * (127 / max)), halves to even
//   sums[t, g]  = sum codes[t, c]          over the c of group g
//
//   x      [n_tokens, n_cols] f32           codes  [n_tokens, n_cols] int8, in [-127, 127]
//   scales [n_tokens, n_groups] f32         sums   [n_tokens, n_groups] int32
//
// A group of zeros, or of numbers below 2^-100, has scale 0 and codes 0. A group that holds NaN or infinity
// has scale NaN and codes 0, so that damage shows in the product. Every step is one IEEE operation: the bits
// are the same on every chip. Needs n_cols % group_size == 0 and group_size % 16 == 0. Never allocates, never
// throws.
#pragma once
#include <cstdint>

#include "core/variant.h"

namespace russet {

constexpr float kLeastMax = 0x1p-100f;

struct QuantizeArgs {
  const float* x;
  int8_t* codes;
  float* scales;
  int32_t* sums;
  int n_tokens, n_cols, group_size;
};
using QuantizeFn = void(const QuantizeArgs&);
std::span<const Variant<QuantizeFn>> quantize_variants();  // fastest first, "ref" last
void quantize(const QuantizeArgs& args);                   // the best of them on this chip

}  // namespace russet
