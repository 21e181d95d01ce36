// The two BLAS functions russet calls, declared here so that Accelerate, OpenBLAS and scipy's renamed
// OpenBLAS look the same and no vendor header is needed. RUSSET_BLAS is what CMake found; absent, nothing
// here exists.
#pragma once

#if defined(RUSSET_BLAS)
#if defined(RUSSET_BLAS_SCIPY)
#define cblas_sgemm scipy_cblas_sgemm
#define cblas_sgemv scipy_cblas_sgemv
#define openblas_set_num_threads scipy_openblas_set_num_threads
#define openblas_get_config scipy_openblas_get_config
#endif

extern "C" {
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a,
                 int lda, const float* b, int ldb, float beta, float* c, int ldc);
void cblas_sgemv(int order, int trans, int m, int n, float alpha, const float* a, int lda, const float* x,
                 int incx, float beta, float* y, int incy);
#if !defined(__APPLE__)
void openblas_set_num_threads(int n_threads);
char* openblas_get_config(void);
#endif
}

namespace russet {
enum { kBlasRowMajor = 101, kBlasNoTrans = 111, kBlasTrans = 112 };
}
#endif
