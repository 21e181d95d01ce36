// What the kernels for AVX-512 VNNI and AMX share: which rows of a band exist.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "weights/packed.h"

namespace russet {
namespace {

// Rows of band b that are not past the last.
inline __mmask16 rows_left(const Packed& w, int b) {
  return __mmask16((1u << std::clamp(w.n_rows - b * kBandRows, 0, kBandRows)) - 1);
}

}  // namespace
}  // namespace russet
