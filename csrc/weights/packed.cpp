#include "weights/packed.h"

#include <cmath>
#include <cstring>

#include "core/parallel.h"

namespace russet {

static size_t aligned(size_t n_bytes) {
  return (n_bytes + 63) / 64 * 64;
}

static Packed shape_of(int n_rows, int n_cols, int bits, int group_size, DType dtype) {
  Packed p;
  p.n_rows = n_rows, p.n_cols = n_cols;
  p.bits = bits, p.group_size = group_size;
  p.dtype = dtype;
  return p;
}

static size_t codes_bytes(const Packed& p) {
  return size_t(p.n_bands()) * p.band_bytes();
}
static size_t scales_bytes(const Packed& p) {
  return aligned(size_t(p.n_bands()) * p.band_scales() * size_of(p.dtype));
}

size_t packed_bytes(int n_rows, int n_cols, int bits, int group_size, DType dtype, bool symmetric) {
  const Packed p = shape_of(n_rows, n_cols, bits, group_size, dtype);
  return codes_bytes(p) + (symmetric ? 1 : 2) * scales_bytes(p);
}

Packed packed_at(const void* memory, int n_rows, int n_cols, int bits, int group_size, DType dtype,
                 bool symmetric) {
  Packed p = shape_of(n_rows, n_cols, bits, group_size, dtype);
  const auto* bytes = static_cast<const uint8_t*>(memory);
  p.codes = bytes;
  p.scales = bytes + codes_bytes(p);
  if (!symmetric) p.biases = bytes + codes_bytes(p) + scales_bytes(p);
  return p;
}

bool is_symmetric(const Affine& a) {
  const size_t n = size_t(a.n_rows) * size_t(a.n_cols / a.group_size);
  const float center = float(1 << (a.bits - 1));
  return with_type(a.dtype, [&]<typename T>(const T*) {
    const T *scales = static_cast<const T*>(a.scales), *biases = static_cast<const T*>(a.biases);
    for (size_t i = 0; i < n; ++i)
      if (!(float_at(biases + i) == -center * float_at(scales + i))) return false;  // not so either of a NaN
    return true;
  });
}

// One band's codes, tile by tile. Rows past the last are written as zeros.
static void pack_codes(const Affine& a, int first_row, uint8_t* out) {
  const size_t row_bytes = size_t(a.n_cols) * size_t(a.bits) / 8;
  const uint8_t* rows[kBandRows];
  for (int r = 0; r < kBandRows; ++r)
    rows[r] = first_row + r < a.n_rows ? a.codes + size_t(first_row + r) * row_bytes : nullptr;
  for (size_t at = 0; at < row_bytes;
       at += 4, out += 64) {  // four bytes of a row make four bytes of the block
    for (int r = 0; r < kBandRows; ++r) {
      uint32_t q = 0;
      if (rows[r]) std::memcpy(&q, rows[r] + at, 4);
      if (a.bits == 8) {
        if (rows[r]) q ^= 0x80808080u;  // q - 128
      } else {
        // Eight nibbles c0 c1 ... c7, the first lowest, become the bytes c4:c0 c5:c1 c6:c2 c7:c3.
        const uint32_t early = q & 0xffff, late = q >> 16;
        const auto spread = [](uint32_t n) {  // 16 bits dcba -> bytes 0d0c0b0a
          n = (n | n << 8) & 0x00ff00ffu;
          return (n | n << 4) & 0x0f0f0f0fu;
        };
        q = spread(early) | spread(late) << 4;
      }
      std::memcpy(out + 4 * r, &q, 4);
    }
  }
}

// Scales or biases [n_rows, n_groups] of one band -> [n_groups, 16].
static void pack_groups(const Affine& a, const void* of_groups, int first_row, void* out) {
  const size_t n_groups = size_t(a.n_cols / a.group_size), size = size_of(a.dtype);
  const auto* in = static_cast<const char*>(of_groups);
  auto* to = static_cast<char*>(out);
  for (size_t g = 0; g < n_groups; ++g)
    for (int r = 0; r < kBandRows; ++r, to += size) {
      if (first_row + r < a.n_rows)
        std::memcpy(to, in + (size_t(first_row + r) * n_groups + g) * size, size);
      else
        std::memset(to, 0, size);
    }
}

Packed pack(const Affine& a, bool symmetric, void* memory, int n_threads) {
  const Packed p = packed_at(memory, a.n_rows, a.n_cols, a.bits, a.group_size, a.dtype, symmetric);
  parallel(n_threads, [&](Share share) {
    const auto [begin, end] = share.of(p.n_bands());
    for (int b = begin; b < end; ++b) {
      pack_codes(a, b * kBandRows, const_cast<uint8_t*>(p.band(b)));
      pack_groups(a, a.scales, b * kBandRows, const_cast<void*>(p.band_of(p.scales, b)));
      if (p.biases) pack_groups(a, a.biases, b * kBandRows, const_cast<void*>(p.band_of(p.biases, b)));
    }
  });
  return p;
}

void unpack_row(const Packed& w, int row, float* y) {
  const int b = row / kBandRows, r = row % kBandRows;
  const uint8_t* band = w.band(b);
  with_type(w.dtype, [&]<typename T>(const T*) {
    const T* scales = static_cast<const T*>(w.band_of(w.scales, b)) + r;
    const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) + r : nullptr;
    for (int c = 0; c < w.n_cols; ++c) {
      const size_t g = size_t(c / w.group_size) * kBandRows;
      int q;
      if (w.bits == 8) {
        q = int(band[size_t(c / 4) * 64 + size_t(4 * r + c % 4)] ^ 0x80);
      } else {
        const uint8_t pair = band[size_t(c / 8) * 64 + size_t(4 * r + c % 4)];
        q = c % 8 < 4 ? pair & 15 : pair >> 4;
      }
      const float scale = float_at(scales + g);
      const float bias = biases ? float_at(biases + g) : -w.center() * scale;
      y[c] = std::fma(scale, float(q), bias);
    }
  });
}

void unpack_band(const Packed& w, int b, float* y) {
  const uint8_t* codes = w.band(b);
  const int n_rows = w.n_rows - b * kBandRows < kBandRows ? w.n_rows - b * kBandRows : kBandRows;
  const size_t n_cols = size_t(w.n_cols);
  with_type(w.dtype, [&]<typename T>(const T*) {
    const T* scales = static_cast<const T*>(w.band_of(w.scales, b));
    const T* biases = w.biases ? static_cast<const T*>(w.band_of(w.biases, b)) : nullptr;
    for (size_t first = 0; first < n_cols; first += size_t(w.group_size), scales += kBandRows) {
      float scale[kBandRows], zero[kBandRows];
      for (int r = 0; r < kBandRows; ++r) {
        scale[r] = float_at(scales + r);
        zero[r] = biases ? float_at(biases + r) : -w.center() * scale[r];
      }
      if (biases) biases += kBandRows;
      for (size_t c = first; c < first + size_t(w.group_size); c += w.bits == 8 ? 4 : 8, codes += 64)
        for (int r = 0; r < n_rows; ++r) {
          float* to = y + size_t(r) * n_cols + c;
          for (int i = 0; i < 4; ++i) {
            const uint8_t code = codes[4 * r + i];
            to[i] = std::fma(scale[r], float(w.bits == 8 ? code ^ 0x80 : code & 15), zero[r]);
            if (w.bits == 4) to[4 + i] = std::fma(scale[r], float(code >> 4), zero[r]);
          }
        }
    }
  });
}

}  // namespace russet
