#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kv_store/kv_load.h"

namespace russet {

// The textbook softmax in double, over all keys of the run at once: the fast variants are measured against
// this.
static void attention_ref(const AttentionArgs& a, int run, const PartialSoftmax& partial) {
  const size_t dim = size_t(a.format.head_dim);
  std::vector<double> scores(kRunTokens), sums(dim);
  std::vector<float> key(dim), value(dim);
  for (int t = 0; t < a.n_tokens; ++t)
    for (int h = 0; h < a.n_heads; ++h) {
      const size_t row = size_t(t) * size_t(a.n_heads) + size_t(h);
      const float* q = a.q + size_t(t) * a.stride + size_t(h) * dim;
      const int begin = run * kRunTokens, end = std::min(begin + kRunTokens, a.pos + t + 1);
      const int first = first_key(a.pos + t, a.window);
      const auto seen = [&](int j) {
        return (j >= first || j < a.n_sinks) && a.table[j / kBlockTokens] != kNoBlock;
      };
      const auto block = [&](int j) {
        return a.blocks + size_t(a.table[j / kBlockTokens]) * a.format.block_bytes();
      };
      double top = -double(std::numeric_limits<float>::max());
      for (int j = begin; j < end; ++j) {
        if (!seen(j)) continue;
        load_key(a.format, block(j), j % kBlockTokens, key.data());
        double s = 0;
        for (size_t c = 0; c < dim; ++c) s += double(q[c]) * double(key[c]);
        s *= double(a.scale);
        if (a.softcap > 0) s = double(a.softcap) * std::tanh(s / double(a.softcap));
        scores[size_t(j - begin)] = s;
        top = std::max(top, s);
      }
      double total = 0;
      std::fill(sums.begin(), sums.end(), 0);
      for (int j = begin; j < end; ++j) {
        if (!seen(j)) continue;
        const double weight = std::exp(scores[size_t(j - begin)] - top);
        total += weight;
        load_value(a.format, block(j), j % kBlockTokens, value.data());
        for (size_t c = 0; c < dim; ++c) sums[c] += weight * double(value[c]);
      }
      float* out = partial.sums + row * PartialSoftmax::row_floats(a.format.head_dim);
      for (size_t c = 0; c < dim; ++c) out[c] = float(sums[c]);
      partial.tops[row] = float(top);
      partial.totals[row] = float(total);
    }
}

#if defined(__x86_64__)
AttentionFn attention_amx, attention_avx512, attention_avx2;
#elif defined(__aarch64__)
AttentionFn attention_neon;
#endif

static constexpr Variant<AttentionFn> kVariants[] = {
#if defined(__x86_64__)
    {"amx", kNeedsAmx, attention_amx},
#endif
    RUSSET_SIMD_ROWS(attention)  //
    {"ref", kBaseline, attention_ref},
};

std::span<const Variant<AttentionFn>> attention_variants() {
  return kVariants;
}

int attention_runs(const AttentionArgs& a) {
  return (a.pos + a.n_tokens - 1) / kRunTokens + 1;
}

bool sees_run(const AttentionArgs& a, int run) {
  const int begin = run * kRunTokens;
  return begin < a.n_sinks || begin + kRunTokens > first_key(a.pos, a.window);
}

namespace {

// Runs are added to it in their order.
class Merged {
 public:
  Merged(const AttentionArgs& args, float* memory)
      : a_(args),
        n_rows_(args.n_tokens * args.n_heads),
        row_(PartialSoftmax::row_floats(args.format.head_dim)),
        all_(PartialSoftmax::at(memory, n_rows_, args.format.head_dim)) {
    std::fill_n(all_.sums, size_t(n_rows_) * row_, 0.0f);
    std::fill_n(all_.tops, n_rows_, -std::numeric_limits<float>::max());
    std::fill_n(all_.totals, n_rows_, 0.0f);
  }

  void add(const PartialSoftmax& run) {
    for (int r = 0; r < n_rows_; ++r) {
      if (run.totals[r] == 0) continue;
      const float top = std::max(all_.tops[r], run.tops[r]);
      const float keep = std::exp(all_.tops[r] - top), share = std::exp(run.tops[r] - top);
      float* sums = all_.sums + size_t(r) * row_;
      const float* more = run.sums + size_t(r) * row_;
      for (size_t c = 0; c < size_t(a_.format.head_dim); ++c) sums[c] = keep * sums[c] + share * more[c];
      all_.totals[r] = keep * all_.totals[r] + share * run.totals[r];
      all_.tops[r] = top;
    }
  }

  void write() const {
    const size_t dim = size_t(a_.format.head_dim);
    for (int r = 0; r < n_rows_; ++r) {
      float* out = a_.out + size_t(r / a_.n_heads) * a_.stride + size_t(r % a_.n_heads) * dim;
      const float* sums = all_.sums + size_t(r) * row_;
      const float total = all_.totals[r];
      for (size_t c = 0; c < dim; ++c) out[c] = total == 0 ? 0 : sums[c] / total;
    }
  }

 private:
  const AttentionArgs& a_;
  int n_rows_;
  size_t row_;
  PartialSoftmax all_;
};

}  // namespace

void merge_runs(const AttentionArgs& a, float* partials, int n) {
  const int n_rows = a.n_tokens * a.n_heads, head_dim = a.format.head_dim;
  Merged all(a, a.scratch);
  for (int i = 0; i < n; ++i, partials += PartialSoftmax::n_floats(n_rows, head_dim))
    all.add(PartialSoftmax::at(partials, n_rows, head_dim));
  all.write();
}

void attention(AttentionFn& run, const AttentionArgs& a) {
  // Behind what the kernel itself takes of the scratch.
  float* const memory = a.scratch + kAttentionKernelFloats;
  const PartialSoftmax partial = PartialSoftmax::at(memory, a.n_tokens * a.n_heads, a.format.head_dim);
  Merged all(a, memory + PartialSoftmax::n_floats(kAttentionRows, kMaxHeadDim));
  for (int r = 0; r < attention_runs(a); ++r) {
    if (!sees_run(a, r)) continue;
    run(a, r, partial);
    all.add(partial);
  }
  all.write();
}

}  // namespace russet
