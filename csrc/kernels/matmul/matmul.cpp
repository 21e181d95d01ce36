#include "kernels/matmul/matmul.h"

#include <algorithm>

#include "kernels/matmul/blas.h"
#include "kernels/widen/widen.h"

namespace russet {

// The naive loop, summed in double: the other variants are measured against it.
static void matmul_ref(const MatmulArgs& a) {
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
static void sgemm(const MatmulArgs& a, const float* w, int row, int n_rows) {
  const int n_cols = a.w.n_cols;
  cblas_sgemm(kBlasRowMajor, kBlasNoTrans, kBlasTrans, a.n_tokens, n_rows, n_cols, 1.0f, a.x, n_cols, w,
              n_cols, 0.0f, a.y + row, int(a.y_stride));
}

// f32 weights go to sgemm as they lie; 16-bit ones are widened into scratch, as many rows at a time as fit.
static void matmul_blas(const MatmulArgs& a) {
  if (a.w.dtype == DType::f32) return sgemm(a, static_cast<const float*>(a.w.data), 0, a.w.n_rows);
  const int block = std::max(1, int(kMatmulScratchFloats / size_t(a.w.n_cols)));
  for (int row = 0; row < a.w.n_rows; row += block) {
    const int n_rows = std::min(block, a.w.n_rows - row);
    widen({a.w.row(row), a.w.dtype, a.scratch, size_t(n_rows) * size_t(a.w.n_cols)});
    sgemm(a, a.scratch, row, n_rows);
  }
}
#endif

RUSSET_DECLARE_SIMD(matmul, MatmulArgs);
#if defined(__x86_64__)
void matmul_amx(const MatmulArgs& args);
#endif

#if defined(RUSSET_BLAS)
#define RUSSET_BLAS_ROW {"blas", kBaseline, matmul_blas},
#else
#define RUSSET_BLAS_ROW
#endif

static constexpr Variant<MatmulFn> kVariantsBf16[] = {
#if defined(__x86_64__)
    {"amx", kNeedsAmx, matmul_amx},
#endif
    RUSSET_BLAS_ROW RUSSET_SIMD_ROWS(matmul)  //
    {"ref", kBaseline, matmul_ref},
};

static constexpr Variant<MatmulFn> kVariants[] = {
    RUSSET_BLAS_ROW RUSSET_SIMD_ROWS(matmul)  //
    {"ref", kBaseline, matmul_ref},
};

std::span<const Variant<MatmulFn>> matmul_variants(DType dtype) {
#if defined(RUSSET_BLAS) && !defined(__APPLE__)
  // Our threads call it side by side; a second pool inside it would fight with ours.
  static const bool single_threaded = (openblas_set_num_threads(1), true);
  (void)single_threaded;
#endif
  if (dtype == DType::bf16) return kVariantsBf16;
  return kVariants;
}

void matmul(const MatmulArgs& args) {
  static MatmulFn* const run = pick("matmul", matmul_variants(DType::f32)).run;
  static MatmulFn* const run_bf16 = pick("matmul_bf16", matmul_variants(DType::bf16)).run;
  (args.w.dtype == DType::bf16 ? run_bf16 : run)(args);
}

const char* matmul_library() {
#if !defined(RUSSET_BLAS)
  return "none";
#elif defined(__APPLE__)
  return "Accelerate";
#else
  return openblas_get_config();
#endif
}

}  // namespace russet
