// Plain loops over a block's 64 keys, which compilers turn into vectors of the instruction set at hand.
#include <algorithm>
#include <cmath>

#include "core/simd.h"
#include "kernels/attention/attention_mass.h"
#include "kernels/attention/widen_plane.h"

namespace russet {
namespace {

constexpr float kHidden = -3.4e38f;  // a score whose weight is exactly 0

// A block's keys as floats, by columns
void widen_keys(const KvFormat& f, const char* block, float* keys) {
  widen_plane(f.keys, block, f.head_dim, kBlockTokens, keys, kBlockTokens);
  if (f.keys != KvType::int8) return;
  const auto* scales = static_cast<const float*>(static_cast<const void*>(block + f.key_scales()));
  for (int c = 0; c < f.head_dim; ++c)
    for (int j = 0; j < kBlockTokens; ++j) keys[c * kBlockTokens + j] *= scales[j];
}

}  // namespace

void RUSSET_FOR_ISA(attention_mass)(const AttentionMassArgs& a) {
  const int n_blocks = int(blocks_for(a.pos + a.n_tokens)), dim = a.format.head_dim;
  const size_t row = size_t(n_blocks) * kBlockTokens;
  float *const scores = a.scratch, *const keys = scores + size_t(a.n_tokens * a.n_heads) * row;

  for (int b = 0; b < n_blocks; ++b) {
    if (a.table[b] == kNoBlock) continue;
    widen_keys(a.format, a.blocks + size_t(a.table[b]) * a.format.block_bytes(), keys);
    for (int t = 0; t < a.n_tokens; ++t)
      for (int h = 0; h < a.n_heads; ++h) {
        const float* q = a.q + size_t(t) * a.stride + size_t(h * dim);
        float s[kBlockTokens] = {};
        for (int c = 0; c < dim; ++c)
          for (int j = 0; j < kBlockTokens; ++j) s[j] += q[c] * keys[c * kBlockTokens + j];
        std::copy_n(s, kBlockTokens, scores + size_t(t * a.n_heads + h) * row + size_t(b) * kBlockTokens);
      }
  }

  for (int t = 0; t < a.n_tokens; ++t) {
    const int end = a.pos + t + 1, begin = first_key(a.pos + t, a.window);
    for (int h = 0; h < a.n_heads; ++h) {
      float* s = scores + size_t(t * a.n_heads + h) * row;
      float top = kHidden;
      for (int b = 0; b < n_blocks; ++b)
        for (int j = b * kBlockTokens; j < (b + 1) * kBlockTokens; ++j) {
          const bool seen = a.table[b] != kNoBlock && j < end && (j >= begin || j < a.n_sinks);
          const float scaled = s[j] * a.scale;
          s[j] = !seen ? kHidden : a.softcap > 0 ? a.softcap * std::tanh(scaled / a.softcap) : scaled;
          top = std::max(top, s[j]);
        }
      Vec totals = splat(0);
      for (size_t j = 0; j < row; j += Vec::width) {
        const Vec e = exp(load(s + j) - splat(top));
        store(s + j, e);
        totals = totals + e;
      }
      const float total = sum(totals);
      for (int b = 0; b < n_blocks; ++b) {
        Vec squares = splat(0);
        for (int j = b * kBlockTokens; j < (b + 1) * kBlockTokens; j += Vec::width)
          squares = fma(load(s + j), load(s + j), squares);
        if (a.table[b] != kNoBlock) a.mass[b] += sum(squares) / (total * total);
      }
    }
  }
}

}  // namespace russet
