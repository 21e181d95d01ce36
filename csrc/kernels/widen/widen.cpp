#include "kernels/widen/widen.h"

namespace russet {

static void widen_ref(const WidenArgs& a) {
  with_type(a.dtype, [&]<typename T>(const T*) {
    const T* x = static_cast<const T*>(a.x);
    for (size_t i = 0; i < a.n; ++i) a.y[i] = float_at(x + i);
  });
}

RUSSET_DECLARE_SIMD(widen, WidenArgs);

static constexpr Variant<WidenFn> kVariants[] = {
    RUSSET_SIMD_ROWS(widen)  //
    {"ref", kBaseline, widen_ref},
};

std::span<const Variant<WidenFn>> widen_variants() {
  return kVariants;
}

void widen(const WidenArgs& args) {
  static WidenFn* const run = pick("widen", widen_variants()).run;
  run(args);
}

}  // namespace russet
