// AMX: sixteen rows by sixteen keys or columns by 64 bytes in one instruction. Keys and values as vpdpbusd
// takes them are B tiles as they lie, rows of q and of weights A tiles. Fewer than sixteen rows go to
// vpdpbusd: integers give the same bits.
#include "core/amx.h"
#include "kernels/attention/attention_int8_avx512.h"

namespace russet {
namespace {

constexpr int kTileRows = 16;

// The sums are tiles 0 to 3.
template <int n_vectors, typename Byte>
void multiply_tiles(const Byte* a, size_t a_stride, int n_groups, const int8_t* tiles, int tile_stride,
                    Ints (&sums)[kTileRows][n_vectors]) {
  static_assert(n_vectors <= 4);
  each_tile<n_vectors>([]<int v>() { zero_tile<v>(); });
  for (int group = 0; group < n_groups; group += 16) {
    load_tile<4>(a + 4 * group, a_stride);
    const int8_t* b = tiles + size_t(group) * size_t(tile_stride);
    each_tile<n_vectors>([&]<int v>() {
      load_tile<5 + v % 3>(b + 64 * v, size_t(tile_stride));
      add_product_of_unsigned<v, 4, 5 + v % 3>();
    });
  }
  each_tile<n_vectors>([&]<int v>() { store_tile<v>(&sums[0][v], sizeof sums[0]); });
}

}  // namespace
}  // namespace russet

#include "kernels/attention/attention_int8_steps.h"

namespace russet {
namespace {

template <bool int8_values>
void run_on_tiles(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  if (args.n_tokens * args.n_heads < kTileRows) return run<int8_values>(args, of_keys, partial);
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.rows[tile] = 16, config.row_bytes[tile] = 64;
  configure_tiles(config);
  run<int8_values>(args, of_keys, partial);
  release_tiles();
}

}  // namespace

void attention_sage_amx(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run_on_tiles<false>(args, of_keys, partial);
}
void attention_integer_amx(const AttentionArgs& args, int of_keys, const PartialSoftmax& partial) {
  run_on_tiles<true>(args, of_keys, partial);
}

}  // namespace russet
