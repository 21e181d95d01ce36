// Where the KV cache holds a position, as csrc/kv_cache/kv_cache.h lays it out.
#pragma once
#include "args.h"

// Elements from `cache` to the head_dim numbers of a position's key. Many blocks pass 2^32 elements: ulong.
inline ulong key_offset(constant russet::metal::Cache& cache, uint kv_head, uint pos) {
  const uint block = pos / russet::metal::kCacheBlock, row = pos % russet::metal::kCacheBlock;
  return ulong(block) * cache.block_stride +
         ulong(cache.layer_offset + kv_head * russet::metal::kCacheBlock + row) * cache.head_dim;
}

// Elements from a position's key to its value.
inline uint value_offset(constant russet::metal::Cache& cache) {
  return cache.n_kv_heads * russet::metal::kCacheBlock * cache.head_dim;
}
