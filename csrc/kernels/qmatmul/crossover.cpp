#include "kernels/qmatmul/crossover.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "kernels/matmul/blas.h"
#include "kernels/matmul/matmul.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/quantize/quantize.h"

namespace russet {

#if defined(RUSSET_BLAS)

void unpacked_matmul(const Packed& w, const float* x, float* y, int n_tokens, size_t y_stride,
                     float* scratch) {
  const int n_bands = int(kUnpackedFloats / (size_t(w.n_cols) * kBandRows));  // that fit
  for (int b = 0; b < w.n_bands(); b += n_bands) {
    const int end = std::min(b + n_bands, w.n_bands());
    for (int i = b; i < end; ++i) unpack_band(w, i, scratch + size_t(i - b) * kBandRows * size_t(w.n_cols));
    const int first = b * kBandRows, n_rows = std::min(end * kBandRows, w.n_rows) - first;
    matmul_variants(DType::f32);  // makes BLAS keep to this thread
    cblas_sgemm(kBlasRowMajor, kBlasNoTrans, kBlasTrans, n_tokens, n_rows, w.n_cols, 1.0f, x, w.n_cols,
                scratch, w.n_cols, 0.0f, y + first, int(y_stride));
  }
}

static constexpr int kMostTokens = 512, kMostRows = 256, kRounds = 3;

// Seconds of the fastest of a few rounds; each round every thread runs `work`.
template <typename Work>
static double seconds(int n_threads, const Work& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    parallel(n_threads, work);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

int measure_crossover(const Packed& w, int n_threads) {
  if (size_t(w.n_cols) > kUnpackedFloats / kBandRows) return 0;
  const Packed part = w.rows(0, std::min(w.n_rows, kMostRows));
  Packed tiles = part;  // slices are merged to tiles before; here they are taken for them, just as fast
  tiles.radii = nullptr;
  const size_t n = size_t(kMostTokens) * size_t(w.n_cols), n_groups = n / size_t(w.group_size);
  std::vector<float> x(n), scales(n_groups);
  std::vector<int8_t> codes(n);
  std::vector<int32_t> sums(n_groups);
  uint32_t draw = 1;
  for (float& value : x) value = float(int32_t(draw = draw * 1664525u + 1013904223u)) * 0x1p-31f;
  const size_t n_results = size_t(kMostTokens) * size_t(part.n_rows);
  static_assert(kQmatmulScratchBytes <= kUnpackedFloats * sizeof(float));
  const Buffer memory(size_t(n_threads) * (kUnpackedFloats + n_results) * sizeof(float));
  const auto scratch_of = [&](Share share) {
    return memory.floats() + size_t(share.thread) * (kUnpackedFloats + n_results);
  };

  int from = 0;
  for (int n_tokens = kMostTokens; n_tokens >= 16; n_tokens /= 2) {
    quantize({x.data(), codes.data(), scales.data(), sums.data(), n_tokens, w.n_cols, w.group_size});
    const double int8 = seconds(n_threads, [&](Share share) {
      float* scratch = scratch_of(share);
      qmatmul({tiles,
               {codes.data(), scales.data(), sums.data()},
               scratch + kUnpackedFloats,
               n_tokens,
               size_t(part.n_rows),
               reinterpret_cast<uint8_t*>(scratch)});
    });
    const double blas = seconds(n_threads, [&](Share share) {
      float* scratch = scratch_of(share);
      unpacked_matmul(part, x.data(), scratch + kUnpackedFloats, n_tokens, size_t(part.n_rows), scratch);
    });
    if (blas * 1.2 > int8) break;
    from = n_tokens;
  }
  return from;
}

#else

void unpacked_matmul(const Packed&, const float*, float*, int, size_t, float*) {}  // nobody asks for it
int measure_crossover(const Packed&, int) {
  return 0;
}

#endif

}  // namespace russet
