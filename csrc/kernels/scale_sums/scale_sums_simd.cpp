#include "core/simd.h"
#include "kernels/scale_sums/scale_sums.h"

namespace russet {

void RUSSET_FOR_ISA(scale_sums)(const ScaleSumsArgs& a) {
  constexpr int kVecs = kBandRows / Vec::width;
  const Packed& w = a.band;
  with_type(w.dtype, [&]<typename T>(const T*) {
    const T *scales = static_cast<const T*>(w.scales), *biases = static_cast<const T*>(w.biases);
    const int32_t* sums = a.sums;
    Vec acc[kVecs];
    for (Vec& v : acc) v = splat(0);
    for (int g = 0; g < w.n_groups(); ++g, sums += kBandRows, scales += kBandRows) {
      const float x_scale = a.x.scales[g], x_sum = x_scale * float(a.x.sums[g]);
      const int32_t off = a.center * a.x.sums[g];
      alignas(64) float d[kBandRows];
      for (int r = 0; r < kBandRows; ++r) d[r] = float(sums[r] - off);
      for (int v = 0; v < kVecs; ++v) {
        const Vec scale = load(scales + v * Vec::width);
        acc[v] = fma(scale * splat(x_scale), load(d + v * Vec::width), acc[v]);
        if (!biases) continue;
        const Vec zero = fma(splat(w.center()), scale, load(biases + v * Vec::width));
        acc[v] = fma(zero, splat(x_sum), acc[v]);
      }
      if (biases) biases += kBandRows;
    }
    for (int v = 0; v < kVecs; ++v) store(a.y + v * Vec::width, acc[v]);
  });
}

}  // namespace russet
