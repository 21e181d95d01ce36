#include "kernels/attention/attention_mass.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kv_store/kv_load.h"

namespace russet {

// In double, query by query.
static void attention_mass_ref(const AttentionMassArgs& a) {
  const size_t dim = size_t(a.format.head_dim);
  std::vector<double> p(size_t(a.pos + a.n_tokens));
  std::vector<float> key(dim);
  for (int t = 0; t < a.n_tokens; ++t)
    for (int h = 0; h < a.n_heads; ++h) {
      const float* q = a.q + size_t(t) * a.stride + size_t(h) * dim;
      const int end = a.pos + t + 1, begin = first_key(a.pos + t, a.window);
      double top = -1e300, total = 0;
      for (int j = 0; j < end; ++j) {
        const BlockId block = a.table[j / kBlockTokens];
        p[size_t(j)] = -1e300;
        if (block == kNoBlock || (j < begin && j >= a.n_sinks)) continue;
        load_key(a.format, a.blocks + size_t(block) * a.format.block_bytes(), j % kBlockTokens, key.data());
        double s = 0;
        for (size_t c = 0; c < dim; ++c) s += double(q[c]) * double(key[c]);
        s *= double(a.scale);
        p[size_t(j)] = a.softcap > 0 ? double(a.softcap) * std::tanh(s / double(a.softcap)) : s;
        top = std::max(top, p[size_t(j)]);
      }
      for (int j = 0; j < end; ++j) total += std::exp(p[size_t(j)] - top);
      for (int j = 0; j < end; ++j) {
        const double share = std::exp(p[size_t(j)] - top) / total;
        a.mass[j / kBlockTokens] += float(share * share);
      }
    }
}

RUSSET_DECLARE_SIMD(attention_mass, AttentionMassArgs);

static constexpr Variant<AttentionMassFn> kVariants[] = {
    RUSSET_SIMD_ROWS(attention_mass)  //
    {"ref", kBaseline, attention_mass_ref},
};

std::span<const Variant<AttentionMassFn>> attention_mass_variants() {
  return kVariants;
}

void attention_mass(const AttentionMassArgs& args) {
  static AttentionMassFn* const run = pick("attention_mass", attention_mass_variants()).run;
  run(args);
}

}  // namespace russet
