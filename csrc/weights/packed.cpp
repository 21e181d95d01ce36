#include "weights/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "kernels/merge/merge.h"

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

static size_t radii_bytes(const Packed& p) {
  return size_t(p.n_bands()) * (kSlices - 1) * kBandRows * sizeof(float);
}

size_t packed_bytes(int n_rows, int n_cols, int bits, int group_size, DType dtype, bool symmetric,
                    bool sliced) {
  const Packed p = shape_of(n_rows, n_cols, bits, group_size, dtype);
  return codes_bytes(p) + (symmetric ? 1 : 2) * scales_bytes(p) + (sliced ? radii_bytes(p) : 0);
}

Packed packed_at(const void* memory, int n_rows, int n_cols, int bits, int group_size, DType dtype,
                 bool symmetric, bool sliced) {
  Packed p = shape_of(n_rows, n_cols, bits, group_size, dtype);
  const auto* bytes = static_cast<const uint8_t*>(memory);
  p.codes = bytes;
  p.scales = bytes += codes_bytes(p);
  if (!symmetric) p.biases = bytes += scales_bytes(p);
  if (sliced) {
    p.radii = static_cast<const float*>(static_cast<const void*>(bytes + scales_bytes(p)));
    p.middle = p.codes + size_t(p.n_bands()) * p.slice_bytes(0);
    p.low = p.middle + size_t(p.n_bands()) * p.slice_bytes(1);
  }
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

// ---- slices ----

// Writes a band's tiles to where its slices are, four tiles at a time.
static void slice(const Packed& p, int b, const std::vector<uint8_t>& tiles) {
  uint8_t* slices[kSlices];
  for (int i = 0; i < kSlices; ++i) slices[i] = const_cast<uint8_t*>(p.slice(i, b));
  for (size_t four = 0; four < tiles.size() / 256; ++four)
    for (size_t i = 0; i < 64; ++i) {
      uint8_t q[4];
      for (size_t tile = 0; tile < 4; ++tile) q[tile] = tiles[(4 * four + tile) * 64 + i] ^ 0x80;
      slices[0][2 * four * 64 + i] = uint8_t(q[0] >> 4 | (q[1] & 0xf0));
      slices[0][(2 * four + 1) * 64 + i] = uint8_t(q[2] >> 4 | (q[3] & 0xf0));
      slices[1][four * 64 + i] = uint8_t((q[0] >> 2 & 3) | (q[1] & 12) | (q[2] & 12) << 2 | (q[3] & 12) << 4);
      slices[2][four * 64 + i] = uint8_t((q[0] & 3) | (q[1] & 3) << 2 | (q[2] & 3) << 4 | (q[3] & 3) << 6);
    }
}

// How far the first slices of a band can be off, for each row of its tiles.
static void measure_radii(const Packed& p, int b, const std::vector<uint8_t>& tiles) {
  with_type(p.dtype, [&]<typename T>(const T*) {
    const T* scales = static_cast<const T*>(p.band_of(p.scales, b));
    const T* biases = p.biases ? static_cast<const T*>(p.band_of(p.biases, b)) : nullptr;
    double off[kSlices - 1][kBandRows] = {}, codes[kBandRows] = {}, zeros[kBandRows] = {};  // squares, summed
    for (int g = 0; g < p.n_groups(); ++g) {
      int32_t of_high[64] = {}, of_middle[64] = {}, of_codes[64] = {};  // of each byte of the group's tiles
      const size_t n_tiles = size_t(p.group_size / 4);
      for (const uint8_t *tile = tiles.data() + size_t(g) * n_tiles * 64, *end = tile + n_tiles * 64;
           tile != end; tile += 64)
        for (int i = 0; i < 64; ++i) {
          const int q = tile[i] ^ 0x80;
          of_high[i] += ((q & 15) - 8) * ((q & 15) - 8);
          of_middle[i] += ((q & 3) - 2) * ((q & 3) - 2);
          of_codes[i] += (q - 128) * (q - 128);
        }
      for (int r = 0; r < kBandRows; ++r) {
        const double scale = float_at(scales + g * kBandRows + r);
        const double zero = biases ? p.center() * scale + float_at(biases + g * kBandRows + r) : 0;
        const auto of_row = [&](const int32_t* squares) {
          return scale * scale * std::accumulate(squares + 4 * r, squares + 4 * r + 4, 0.0);
        };
        off[0][r] += of_row(of_high);
        off[1][r] += of_row(of_middle);
        codes[r] += of_row(of_codes);
        zeros[r] += zero * zero * p.group_size;
      }
    }
    for (int r = 0; r < kBandRows; ++r) {
      const double rounding = (4.0 * p.n_groups() + 16) * 0x1p-24;  // two sums, two steps for each group
      for (int n = 1; n < kSlices; ++n) {
        const double radius = std::sqrt(off[n - 1][r]);
        const_cast<float*>(p.radii_of(b, n))[r] =
            float((radius + rounding * (radius + std::sqrt(codes[r]) + std::sqrt(zeros[r]))) * (1 + 1e-6));
      }
    }
  });
}

Packed pack(const Affine& a, bool symmetric, void* memory, int n_threads, bool sliced) {
  const Packed p = packed_at(memory, a.n_rows, a.n_cols, a.bits, a.group_size, a.dtype, symmetric, sliced);
  parallel(n_threads, [&](Share share) {
    const auto [begin, end] = share.of(p.n_bands());
    std::vector<uint8_t> tiles(sliced ? p.band_bytes() : 0);
    for (int b = begin; b < end; ++b) {
      pack_codes(a, b * kBandRows, sliced ? tiles.data() : const_cast<uint8_t*>(p.band(b)));
      pack_groups(a, a.scales, b * kBandRows, const_cast<void*>(p.band_of(p.scales, b)));
      if (p.biases) pack_groups(a, a.biases, b * kBandRows, const_cast<void*>(p.band_of(p.biases, b)));
      if (!sliced) continue;
      slice(p, b, tiles);
      measure_radii(p, b, tiles);
    }
  });
  return p;
}

// Tiles of a band: itself, or what its slices are merged to.
static const uint8_t* tiles_of(const Packed& w, int b) {
  if (!w.sliced()) return w.band(b);
  static thread_local Buffer tiles;
  tiles.reserve(w.band_bytes());
  auto* bytes = static_cast<uint8_t*>(static_cast<void*>(tiles.bytes()));
  merge({{w.slice(0, b), w.slice(1, b), w.slice(2, b)}, w.n_cols, bytes});
  return bytes;
}

void unpack_row(const Packed& w, int row, float* y) {
  const int b = row / kBandRows, r = row % kBandRows;
  const uint8_t* band = tiles_of(w, b);
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
  const uint8_t* codes = tiles_of(w, b);
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
