// Where the KV cache holds a position, as csrc/kv_cache lays it out, and what its numbers stand for.
#pragma once
#include "args.h"

// K: T, or char for codes with a scale for each row.
template <typename K>
constant constexpr bool is_int8 = sizeof(K) == 1;

// Elements of the keys of a block, and of its values: kCacheBlock rows, and of int8 their scales.
template <typename K>
inline uint plane_size(constant russet::metal::Cache& cache) {
  return russet::metal::kCacheBlock * (cache.head_dim + (is_int8<K> ? uint(sizeof(float)) : 0));
}

// The block of the pool that holds a position, or kNoBlock.
inline uint block_of(constant russet::metal::Cache& cache, device const uint* table, uint kv_head, uint pos) {
  return table[(cache.first_table + kv_head) * cache.table_size + pos / russet::metal::kCacheBlock];
}

// Elements of the pool before a block. Many blocks pass 2^32 elements: ulong.
template <typename K>
inline ulong block_offset(constant russet::metal::Cache& cache, uint block) {
  return ulong(block) * (2 * plane_size<K>(cache));
}

// What the codes of a row are to be multiplied by.
template <typename K>
inline float scale_of(constant russet::metal::Cache& cache, device const K* plane, uint row) {
  return is_int8<K> ? ((device const float*)(plane + russet::metal::kCacheBlock * cache.head_dim))[row] : 1;
}
