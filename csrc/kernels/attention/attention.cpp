#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace russet {

// The textbook softmax in double, over all keys at once: the fast variants are measured against this.
static void attention_ref(const AttentionArgs& a) {
  for (int i = 0; i < a.n_queries; ++i) {
    const int begin = first_key(a.pos[i], a.window), end = a.pos[i] + 1;
    std::vector<double> p(size_t(end - begin));
    double top = -1e300, total = 0;
    for (int j = begin; j < end; ++j) {
      double s = 0;
      for (int c = 0; c < a.head_dim; ++c) s += double(a.q[i][c]) * double(a.k[key_offset(a, j) + size_t(c)]);
      s *= double(a.scale);
      if (a.softcap > 0) s = double(a.softcap) * std::tanh(s / double(a.softcap));
      p[size_t(j - begin)] = s;
      top = std::max(top, s);
    }
    for (double& pj : p) total += pj = std::exp(pj - top);
    std::vector<double> sum(size_t(a.head_dim), 0.0);
    for (int j = begin; j < end; ++j)
      for (int c = 0; c < a.head_dim; ++c)
        sum[size_t(c)] += p[size_t(j - begin)] / total * double(a.v[key_offset(a, j) + size_t(c)]);
    std::copy(sum.begin(), sum.end(), a.out[i]);
  }
}

RUSSET_DECLARE_SIMD(attention, AttentionArgs);

static constexpr Variant<AttentionFn> kVariants[] = {
    RUSSET_SIMD_ROWS(attention)  //
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
