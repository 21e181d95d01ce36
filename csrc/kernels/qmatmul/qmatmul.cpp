#include "kernels/qmatmul/qmatmul.h"

#include <cmath>

namespace russet {

// q - center of column c of the band's row r
static int code_at(const Packed& w, const uint8_t* band, int r, int c) {
  if (w.bits == 8) return int8_t(band[size_t(c / 4) * 64 + size_t(4 * r + c % 4)]);
  const uint8_t pair = band[size_t(c / 8) * 64 + size_t(4 * r + c % 4)];
  return (c % 8 < 4 ? pair & 15 : pair >> 4) - 8;
}

// The formula as it stands in the header, one row and token at a time.
static void qmatmul_ref(const QmatmulArgs& a) {
  const Packed& w = a.w;
  const size_t n_groups = size_t(w.n_groups());
  with_type(w.dtype, [&]<typename T>(const T*) {
    for (int r = 0; r < w.n_rows; ++r) {
      const int b = r / kBandRows, lane = r % kBandRows;
      const T* scales = static_cast<const T*>(w.band_of(w.scales, b)) + lane;
      const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) + lane : nullptr;
      for (int t = 0; t < a.n_tokens; ++t) {
        const int8_t* x = a.x.codes + size_t(t) * size_t(w.n_cols);
        float acc = 0;
        for (size_t g = 0; g < n_groups; ++g) {
          int d = 0;
          for (int c = int(g) * w.group_size; c < int(g + 1) * w.group_size; ++c)
            d += code_at(w, w.band(b), lane, c) * x[c];
          const float scale = float_at(scales + g * kBandRows);
          const float x_scale = a.x.scales[size_t(t) * n_groups + g];
          acc = std::fma(scale * x_scale, float(d), acc);
          if (!biases) continue;
          const float zero = std::fma(w.center(), scale, float_at(biases + g * kBandRows));
          acc = std::fma(zero, x_scale * float(a.x.sums[size_t(t) * n_groups + g]), acc);
        }
        a.y[size_t(t) * a.y_stride + size_t(r)] = acc;
      }
    }
  });
}

#if defined(__x86_64__)
void qmatmul_amx(const QmatmulArgs& a);
void qmatmul_vnni(const QmatmulArgs& a);
void qmatmul_avx2(const QmatmulArgs& a);
#elif defined(__aarch64__)
void qmatmul_i8mm(const QmatmulArgs& a);
void qmatmul_dotprod(const QmatmulArgs& a);
#endif

static constexpr Variant<QmatmulFn> kVariants[] = {
#if defined(__x86_64__)
    {"amx", kNeedsAmx, qmatmul_amx},
    {"vnni", kVnni, qmatmul_vnni},
    {"avx2", kAvx2, qmatmul_avx2},
#elif defined(__aarch64__)
    {"i8mm", kDotprod | kI8mm, qmatmul_i8mm},
    {"dotprod", kDotprod, qmatmul_dotprod},
#endif
    {"ref", kBaseline, qmatmul_ref},
};

std::span<const Variant<QmatmulFn>> qmatmul_variants() {
  return kVariants;
}

void qmatmul(const QmatmulArgs& args) {
  static QmatmulFn* const run = pick("qmatmul", qmatmul_variants()).run;
  run(args);
}

}  // namespace russet
