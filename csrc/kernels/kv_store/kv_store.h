// Writes keys and values of consecutive tokens of one key-value head into one block of the cache, in the
// types of its format: floats rounded to the nearest, int8 and int4 with numbers of each token's own.
//
//   k, v     f32, token after token `stride` floats on, head_dim of each
//   slot     of the first token in the block; slot + n_tokens <= kBlockTokens
//
//   int8     scale = max |x| / 127, q = round(x / scale); all zero: scale 0
//   int4     minimum = min x, scale = (max x - min x) / 15, q = round((x - minimum) / scale)
//            A token with a NaN or an infinity gets a scale that is NaN: damage shows.
//
// Reads 8 head_dim bytes a token: bound by memory, and by columns by the distance of its stores.
#pragma once
#include "core/variant.h"
#include "kv_cache/kv_format.h"

namespace russet {

struct KvStoreArgs {
  const float *k, *v;
  size_t stride;
  int n_tokens, slot;
  char* block;
  KvFormat format;
};
using KvStoreFn = void(const KvStoreArgs&);
std::span<const Variant<KvStoreFn>> kv_store_variants();  // fastest first, "ref" last
void kv_store(const KvStoreArgs& args);                   // the best of them on this chip

}  // namespace russet
