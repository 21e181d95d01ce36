#include "core/simd.h"
#include "kernels/widen/widen.h"

namespace russet {

void RUSSET_FOR_ISA(widen)(const WidenArgs& a) {
  with_type(a.dtype, [&]<typename T>(const T*) {
    const T* x = static_cast<const T*>(a.x);
    size_t i = 0;
    for (; i + Vec::width <= a.n; i += Vec::width) store(a.y + i, load(x + i));
    for (; i < a.n; ++i) a.y[i] = float_at(x + i);
  });
}

}  // namespace russet
