#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kv_store/kv_load.h"

namespace russet {

// The textbook softmax in double, over all keys at once: the fast variants are measured against this.
static void attention_ref(const AttentionArgs& a) {
  const size_t dim = size_t(a.format.head_dim);
  std::vector<double> p(size_t(a.pos + a.n_tokens));
  std::vector<float> key(dim), value(dim);
  for (int t = 0; t < a.n_tokens; ++t)
    for (int h = 0; h < a.n_heads; ++h) {
      const float* q = a.q + size_t(t) * a.stride + size_t(h) * dim;
      const int end = a.pos + t + 1, begin = a.window > 0 ? std::max(end - a.window, 0) : 0;
      const auto seen = [&](int j) {
        return (j >= begin || j < a.n_sinks) && a.table[j / kBlockTokens] != kNoBlock;
      };
      double top = -1e300, total = 0;
      for (int j = 0; j < end; ++j) {
        if (!seen(j)) continue;
        load_key(a.format, a.blocks + size_t(a.table[j / kBlockTokens]) * a.format.block_bytes(),
                 j % kBlockTokens, key.data());
        double s = 0;
        for (size_t c = 0; c < dim; ++c) s += double(q[c]) * double(key[c]);
        s *= double(a.scale);
        if (a.softcap > 0) s = double(a.softcap) * std::tanh(s / double(a.softcap));
        p[size_t(j)] = s;
        top = std::max(top, s);
      }
      std::vector<double> sum(dim, 0.0);
      for (int j = 0; j < end; ++j) {
        if (!seen(j)) continue;
        const double weight = std::exp(p[size_t(j)] - top);
        total += weight;
        load_value(a.format, a.blocks + size_t(a.table[j / kBlockTokens]) * a.format.block_bytes(),
                   j % kBlockTokens, value.data());
        for (size_t c = 0; c < dim; ++c) sum[c] += weight * double(value[c]);
      }
      float* out = a.out + size_t(t) * a.stride + size_t(h) * dim;
      for (size_t c = 0; c < dim; ++c) out[c] = total == 0 ? 0 : float(sum[c] / total);
    }
}

static constexpr Variant<AttentionFn> kVariants[] = {
    {"ref", kBaseline, attention_ref},
};

std::span<const Variant<AttentionFn>> attention_variants() {
  return kVariants;
}

void attention(const AttentionArgs& args) {
  static AttentionFn* const run = pick("attention", attention_variants()).run;
  run(args);
}

}  // namespace russet
