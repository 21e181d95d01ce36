// Where the KV cache holds a position, as csrc/kv_cache lays it out.
#pragma once
#include "args.h"

// Elements from `cache` to the head_dim numbers of a position's key. Many blocks pass 2^32 elements: ulong.
inline ulong key_offset(constant russet::metal::Cache& cache, device const uint* table, uint kv_head,
                        uint pos) {
  const uint block = pos / russet::metal::kCacheBlock, row = pos % russet::metal::kCacheBlock;
  const uint in_pool = table[(cache.first_table + kv_head) * cache.table_size + block];
  return (ulong(in_pool) * (2 * russet::metal::kCacheBlock) + row) * cache.head_dim;
}

// Elements from a position's key to its value.
inline uint value_offset(constant russet::metal::Cache& cache) {
  return russet::metal::kCacheBlock * cache.head_dim;
}
