// y[i] = float(x[i]), exactly: x f32, f16 or bf16 of any alignment. Reads 2 or 4 bytes and writes 4: bound by
// memory.
#pragma once
#include "core/variant.h"
#include "core/view.h"

namespace russet {

struct WidenArgs {
  const void* x;
  DType dtype;
  float* y;
  size_t n;
};
using WidenFn = void(const WidenArgs&);
std::span<const Variant<WidenFn>> widen_variants();  // fastest first, "ref" last
void widen(const WidenArgs& args);                   // the best of them on this chip

}  // namespace russet
