// AMX's tiles: eight registers of up to 16 rows of 64 bytes, and the products of two of them.
//
// RUSSET_AMX_EMULATED puts plain C++ in place of the instructions, so that a kernel's loops can be tested on
// a chip without them. Included by files built for AVX-512 alone.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace russet {
namespace {

// What _tile_loadconfig reads: palette 1, then bytes per row and rows of each tile.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(RUSSET_AMX_EMULATED)

struct Tiles {
  TileConfig config;
  uint8_t data[8][16][64];
};
inline thread_local Tiles g_tiles;

inline void configure_tiles(const TileConfig& config) {
  g_tiles.config = config;
  std::memset(g_tiles.data, 0, sizeof g_tiles.data);
}
inline void release_tiles() {
  g_tiles.config = {};
}
template <int tile>
inline void zero_tile() {
  std::memset(g_tiles.data[tile], 0, sizeof g_tiles.data[tile]);
}
template <int tile>
inline void load_tile(const void* from, size_t stride) {
  zero_tile<tile>();
  for (size_t r = 0; r < g_tiles.config.rows[tile]; ++r)
    std::memcpy(g_tiles.data[tile][r], static_cast<const char*>(from) + r * stride,
                g_tiles.config.row_bytes[tile]);
}
template <int tile>
inline void store_tile(void* to, size_t stride) {
  for (size_t r = 0; r < g_tiles.config.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, g_tiles.data[tile][r], g_tiles.config.row_bytes[tile]);
}
// c[m, n] += sum over the 64 columns of a[m, k] * b[k / 4, 4 * n + k % 4], all bytes, b signed, in int32
template <typename OfA, int c, int a, int b>
inline void add_product_of() {
  for (int m = 0; m < g_tiles.config.rows[c]; ++m)
    for (int n = 0; n < g_tiles.config.row_bytes[c] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, &g_tiles.data[c][m][4 * n], 4);
      for (int k = 0; k < g_tiles.config.row_bytes[a]; ++k)
        sum += OfA(g_tiles.data[a][m][k]) * int8_t(g_tiles.data[b][k / 4][4 * n + k % 4]);
      std::memcpy(&g_tiles.data[c][m][4 * n], &sum, 4);
    }
}
template <int c, int a, int b>
inline void add_product() {
  add_product_of<int8_t, c, a, b>();
}
template <int c, int a, int b>
inline void add_product_of_unsigned() {
  add_product_of<uint8_t, c, a, b>();
}

// c[m, n] += sum over the 32 columns of a[m, k] * b[k / 2, 2 * n + k % 2], all bf16, in f32: even and odd k
// are a chain of fused multiply-adds each, and the sum of both is added; what is too small for a normal float
// is zero all along (Intel, Software Developer's Manual, TDPBF16PS).
template <int c, int a, int b>
inline void add_product_bf16() {
  const auto normal = [](float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; };
  const auto value = [&](const uint8_t* p) {
    const uint32_t bits = uint32_t(p[0]) << 16 | uint32_t(p[1]) << 24;
    float x;
    std::memcpy(&x, &bits, 4);
    return normal(x);
  };
  const int n_columns = g_tiles.config.row_bytes[c] / 4;
  for (int m = 0; m < g_tiles.config.rows[c]; ++m) {
    float sums[2][16] = {}, total[16];
    for (int k = 0; k < g_tiles.config.row_bytes[a] / 2; ++k)
      for (int n = 0; n < n_columns; ++n) {
        float& sum = sums[k % 2][n];
        sum = normal(std::fma(value(&g_tiles.data[a][m][2 * k]),
                              value(&g_tiles.data[b][k / 2][4 * n + 2 * (k % 2)]), sum));
      }
    std::memcpy(total, g_tiles.data[c][m], size_t(n_columns) * 4);
    for (int n = 0; n < n_columns; ++n) total[n] = normal(normal(total[n]) + normal(sums[0][n] + sums[1][n]));
    std::memcpy(g_tiles.data[c][m], total, size_t(n_columns) * 4);
  }
}

#else

// As assembly: GCC's intrinsics are macros that paste the tile's number as text, and its _tile_loadconfig
// tells the compiler of 8 of the 64 bytes it reads, so that the stores to the rest are left out (GCC 12).
inline void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}
inline void release_tiles() {
  asm volatile("tilerelease");
}
template <int tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(tile), "r"(from), "r"(stride) : "memory");
}
template <int tile>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(tile), "r"(to), "r"(stride) : "memory");
}
template <int c, int a, int b>
inline void add_product() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
inline void add_product_of_unsigned() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
inline void add_product_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

#endif

// f.operator()<0>() to f.operator()<n - 1>(): a tile's number is a constant.
template <int n, typename F>
inline void each_tile(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f.template operator()<i>(), ...);
  }(std::make_integer_sequence<int, n>());
}

}  // namespace
}  // namespace russet
