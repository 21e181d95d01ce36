#include "weights/affine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "kernels/fit/fit.h"
#include "kernels/widen/widen.h"

namespace russet {

static constexpr int kLeastGroup = 32;

// Weights taken at once by a thread: whole groups of any size, and vectors full of them, in the caches.
static constexpr int kBlock = 4096;

// x has the type exactly.
static float stored_as(float x, const float*) {
  return x;
}
static bf16 stored_as(float x, const bf16*) {
  return {uint16_t(std::bit_cast<uint32_t>(x) >> 16)};
}
// Re-biased as to_float() does it the other way; subnormals come out right at once.
static f16 stored_as(float x, const f16*) {
  const uint32_t bits = std::bit_cast<uint32_t>(x * 0x1p-112f);
  return {uint16_t(bits >> 31 << 15 | (bits >> 13 & 0x7fff))};
}

// Two codes of 4 bits in a byte, the first in the lower half.
static void pack_pairs(const uint8_t* codes, int n, uint8_t* pairs) {
  for (int i = 0; i < n / 2; ++i) pairs[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
}

[[noreturn]] static void refuse(const float* w, size_t at, size_t n_cols) {
  while (std::isfinite(*w)) ++w, ++at;
  fail(ErrorKind::weights, "expected finite weights, got ", *w, " in row ", at / n_cols, ", column ",
       at % n_cols);
}

void to_affine(const View& w, int bits, int group_size, bool symmetric, uint32_t* codes, void* scales,
               void* biases, int n_threads) {
  const size_t n_cols = size_t(w.n_cols);
  with_type(w.dtype, [&]<typename T>(const T* type) {
    parallel(n_threads, [&](Share share) {
      float block[kBlock], block_scales[kBlock / kLeastGroup], block_biases[kBlock / kLeastGroup];
      uint8_t block_codes[kBlock];
      const auto [begin, end] = share.of(w.n_rows);
      for (size_t at = size_t(begin) * n_cols; at < size_t(end) * n_cols; at += kBlock) {
        const int n = int(std::min(size_t(kBlock), size_t(end) * n_cols - at)), n_groups = n / group_size;
        widen({static_cast<const T*>(w.data) + at, w.dtype, block, size_t(n)});
        fit({block, n_groups, group_size, bits, symmetric, w.dtype, block_codes, block_scales, block_biases});
        for (int g = 0; g < n_groups; ++g) {
          if (std::isnan(block_scales[g]))
            refuse(block + g * group_size, at + size_t(g * group_size), n_cols);
          const size_t group = at / size_t(group_size) + size_t(g);
          static_cast<T*>(scales)[group] = stored_as(block_scales[g], type);
          static_cast<T*>(biases)[group] = stored_as(block_biases[g], type);
        }
        uint8_t* to = reinterpret_cast<uint8_t*>(codes) + at * size_t(bits) / 8;
        if (bits == 8)
          std::memcpy(to, block_codes, size_t(n));
        else
          pack_pairs(block_codes, n, to);
      }
    });
  });
}

// ---- errors ----

AffineErrors affine_errors(const View& w, const Affine& a, int n_threads) {
  std::vector<AffineErrors> parts(static_cast<size_t>(n_threads));
  const size_t n_groups = size_t(a.n_cols / a.group_size), row_bytes = size_t(a.n_cols) * size_t(a.bits) / 8;
  with_type(w.dtype, [&]<typename T>(const T*) {
    parallel(n_threads, [&](Share share) {
      const auto [begin, end] = share.of(w.n_rows);
      AffineErrors sums;
      for (int r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(w.row(r));
        const T* scales = static_cast<const T*>(a.scales) + size_t(r) * n_groups;
        const T* biases = static_cast<const T*>(a.biases) + size_t(r) * n_groups;
        const uint8_t* codes = a.codes + size_t(r) * row_bytes;
        for (int c = 0; c < a.n_cols; ++c) {
          const int g = c / a.group_size;
          const int q = a.bits == 8 ? codes[c] : c % 2 ? codes[c / 2] >> 4 : codes[c / 2] & 15;
          const double x = double(float_at(row + c));
          const double v = double(float_at(scales + g)) * q + double(float_at(biases + g));
          sums.max_error = std::max(sums.max_error, std::abs(x - v));
          sums.errors += (x - v) * (x - v);
          sums.ww += x * x;
          sums.vv += v * v;
          sums.wv += x * v;
        }
      }
      parts[size_t(share.thread)] = sums;
    });
  });
  AffineErrors all;
  for (const AffineErrors& part : parts) {
    all.max_error = std::max(all.max_error, part.max_error);
    all.errors += part.errors;
    all.ww += part.ww;
    all.vv += part.vv;
    all.wv += part.wv;
  }
  return all;
}

}  // namespace russet
