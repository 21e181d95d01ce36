// One token's key or value out of a block, exactly, as floats: for the reference, and for whoever needs few.
#pragma once
#include "kv_cache/kv_format.h"

namespace russet {

// head_dim floats of the token in `slot`
void load_key(const KvFormat& format, const char* block, int slot, float* key);
void load_value(const KvFormat& format, const char* block, int slot, float* value);

}  // namespace russet
