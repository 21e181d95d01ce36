// AMX's tiles of int8: eight registers of up to 16 rows of 64 bytes, and the product of two of them.
//
// RUSSET_AMX_EMULATED puts plain C++ in place of the instructions, so that a kernel's loops can be tested on
// a chip without them. Included by files built for AVX-512 alone.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

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
template <int c, int a, int b>
inline void add_product() {
  for (int m = 0; m < g_tiles.config.rows[c]; ++m)
    for (int n = 0; n < g_tiles.config.row_bytes[c] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, &g_tiles.data[c][m][4 * n], 4);
      for (int k = 0; k < g_tiles.config.row_bytes[a]; ++k)
        sum += int8_t(g_tiles.data[a][m][k]) * int8_t(g_tiles.data[b][k / 4][4 * n + k % 4]);
      std::memcpy(&g_tiles.data[c][m][4 * n], &sum, 4);
    }
}

#else

inline void configure_tiles(const TileConfig& config) {
  // GCC 12 believes that only the first 8 bytes are read, and leaves out the stores to the rest.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}
inline void release_tiles() {
  _tile_release();
}
template <int tile>
inline void zero_tile() {
  _tile_zero(tile);
}
template <int tile>
inline void load_tile(const void* from, size_t stride) {
  _tile_loadd(tile, from, stride);
}
template <int tile>
inline void store_tile(void* to, size_t stride) {
  _tile_stored(tile, to, stride);
}
// c[m, n] += sum over the 64 columns of a[m, k] * b[k / 4, 4 * n + k % 4], all int8, in int32
template <int c, int a, int b>
inline void add_product() {
  _tile_dpbssd(c, a, b);
}

#endif

}  // namespace
}  // namespace russet
