#include "kernels/matvec/matvec.h"

#include "kernels/matmul/blas.h"

namespace russet {

// Sums in double: the fast variants are measured against this.
static void matvec_ref(const MatvecArgs& a) {
  with_type(a.w.dtype, [&]<typename T>(const T*) {
    for (int t = 0; t < a.n_tokens; ++t) {
      const float* x = a.x + size_t(t) * size_t(a.w.n_cols);
      for (int r = 0; r < a.w.n_rows; ++r) {
        const T* row = static_cast<const T*>(a.w.row(r));
        double sum = 0;
        for (int c = 0; c < a.w.n_cols; ++c) sum += double(float_at(row + c)) * double(x[c]);
        a.y[size_t(t) * a.y_stride + size_t(r)] = float(sum);
      }
    }
  });
}

#if defined(RUSSET_BLAS)
static void matvec_blas(const MatvecArgs& a) {
  const float* w = static_cast<const float*>(a.w.data);
  const int n_rows = a.w.n_rows, n_cols = a.w.n_cols;
  if (a.n_tokens == 1) {
    cblas_sgemv(kBlasRowMajor, kBlasNoTrans, n_rows, n_cols, 1.0f, w, n_cols, a.x, 1, 0.0f, a.y, 1);
  } else {
    cblas_sgemm(kBlasRowMajor, kBlasNoTrans, kBlasTrans, a.n_tokens, n_rows, n_cols, 1.0f, a.x, n_cols, w,
                n_cols, 0.0f, a.y, int(a.y_stride));
  }
}
#endif

RUSSET_DECLARE_SIMD(matvec, MatvecArgs);

// 16-bit weights: half the bytes of an sgemv on widened ones, so half the time.
static constexpr Variant<MatvecFn> kVariants[] = {
    RUSSET_SIMD_ROWS(matvec)  //
    {"ref", kBaseline, matvec_ref},
};

// f32 weights: sgemv reads the same bytes. Accelerate's is Apple's own and comes first there; elsewhere ours
// reads as fast as OpenBLAS's (benchmarks/kernels.py).
static constexpr Variant<MatvecFn> kVariantsF32[] = {
#if defined(RUSSET_BLAS) && defined(__APPLE__)
    {"blas", kBaseline, matvec_blas},
#endif
    RUSSET_SIMD_ROWS(matvec)  //
#if defined(RUSSET_BLAS) && !defined(__APPLE__)
    {"blas", kBaseline, matvec_blas},
#endif
    {"ref", kBaseline, matvec_ref},
};

std::span<const Variant<MatvecFn>> matvec_variants(DType dtype) {
  if (dtype == DType::f32) return kVariantsF32;
  return kVariants;
}

void matvec(const MatvecArgs& args) {
  static MatvecFn* const run = pick("matvec", matvec_variants(DType::bf16)).run;
  static MatvecFn* const run_f32 = pick("matvec_f32", matvec_variants(DType::f32)).run;
  (args.w.dtype == DType::f32 ? run_f32 : run)(args);
}

}  // namespace russet
