// The softmax of a run of keys, block after block, for the files that are built for one instruction set each:
// what each token sees of a block, and what a row's scores become. The products are left to who includes it.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/simd.h"
#include "kernels/attention/attention.h"

namespace russet {
namespace {

// The keys of a block that a token sees: [0, sinks) and [begin, end).
struct Seen {
  int sinks, begin, end;
  bool any() const { return sinks > 0 || begin < end; }
  bool all() const { return begin == 0 && end == kBlockTokens; }
  bool has(int key) const { return key < sinks || (key >= begin && key < end); }
};

constexpr float kLanes[kBlockTokens] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                        32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                        48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

// x where a token sees the key of this lane, else other
inline Vec where_seen(const Seen& s, int lane, Vec x, Vec other) {
  if (s.all()) return x;
  const Vec lanes = load(kLanes + lane);
  const Vec from_begin = where_less(lanes, splat(float(s.end)), x, other);
  const Vec before = where_less(lanes, splat(float(s.sinks)), x, other);
  return where_less(lanes, splat(float(s.begin)), before, from_begin);
}

struct OnlineSoftmax {
  const AttentionArgs& a;
  const PartialSoftmax& to;
  const int dim, n_rows;
  const size_t row;                                       // floats of it in the sums
  Seen seen[kAttentionRows];                              // of the block at hand, by each token
  const float *key_scales, *value_scales, *value_minima;  // of the block at hand, or null

  OnlineSoftmax(const AttentionArgs& args, const PartialSoftmax& partial)
      : a(args),
        to(partial),
        dim(args.format.head_dim),
        n_rows(args.n_tokens * args.n_heads),
        row(PartialSoftmax::row_floats(dim)) {}

  const Seen& seen_by(int r) const { return seen[r / a.n_heads]; }
  float* sums(int r) const { return to.sums + size_t(r) * row; }

  // Clears the sums, then block(data) for every block of the run of which a token sees something.
  template <typename Block>
  void each_block(int run, Block block) {
    std::fill_n(to.sums, size_t(n_rows) * row, 0.0f);
    std::fill_n(to.tops, n_rows, -std::numeric_limits<float>::max());
    std::fill_n(to.totals, n_rows, 0.0f);
    const int begin = run * kRunTokens, end = std::min(begin + kRunTokens, a.pos + a.n_tokens);
    for (int key = begin; key < end; key += kBlockTokens) {
      const BlockId id = a.table[key / kBlockTokens];
      if (id == kNoBlock || !look(key)) continue;
      const char* data = a.blocks + size_t(id) * a.format.block_bytes();
      find_numbers(data);
      block(data);
    }
  }

  // Turns a row's scores into weights, zero for keys it does not see, and the row's sums to the new top. Not
  // inlined: in two copies the compiler might fuse other products with their sums, and bits would depend on
  // the path.
  [[gnu::noinline]] void softmax(int r, float* weights) {
    constexpr int kVecs = kBlockTokens / Vec::width;
    const Seen& s = seen_by(r);
    Vec x[kVecs], tops = splat(-std::numeric_limits<float>::max());
    for (int i = 0; i < kVecs; ++i) {
      const int lane = i * Vec::width;
      x[i] = load(weights + lane);
      if (key_scales) x[i] = x[i] * load(key_scales + lane);
      if (a.softcap > 0) x[i] = splat(a.softcap) * tanh(x[i] / splat(a.softcap));
      x[i] = where_seen(s, lane, x[i], splat(-std::numeric_limits<float>::infinity()));
      tops = max(x[i], tops);
    }
    const float top = std::max(to.tops[r], max_of(tops));
    if (top != to.tops[r]) shrink(r, std::exp(to.tops[r] - top));
    to.tops[r] = top;
    Vec total = splat(0);
    for (int i = 0; i < kVecs; ++i) {
      x[i] = exp(x[i] - splat(top));
      total = total + x[i];
    }
    to.totals[r] += sum(total);
    if (value_minima) add_minima(r, s, x);
    for (int i = 0; i < kVecs; ++i) {
      const int lane = i * Vec::width;
      if (value_scales) x[i] = where_seen(s, lane, x[i] * load(value_scales + lane), splat(0));
      store(weights + lane, x[i]);
    }
  }

 private:
  // Whether any token sees anything of the block that begins with `key`.
  bool look(int key) {
    bool any = false;
    for (int t = 0; t < a.n_tokens; ++t) {
      const int end = std::clamp(a.pos + t + 1 - key, 0, int(kBlockTokens));
      const int begin = std::clamp(first_key(a.pos + t, a.window) - key, 0, end);
      seen[t] = {std::clamp(a.n_sinks - key, 0, begin), begin, end};
      any = any || seen[t].any();
    }
    return any;
  }

  void find_numbers(const char* data) {
    const KvFormat& f = a.format;
    const auto numbers = [&](bool here, size_t at) {
      return here ? static_cast<const float*>(static_cast<const void*>(data + at)) : nullptr;
    };
    key_scales = numbers(f.keys == KvType::int8, f.key_scales());
    value_scales = numbers(f.values == KvType::int8 || f.values == KvType::int4, f.value_scales());
    value_minima = numbers(f.values == KvType::int4, f.value_minima());
  }

  void shrink(int r, float factor) {
    for (int c = 0; c < dim; c += Vec::width) store(sums(r) + c, load(sums(r) + c) * splat(factor));
    to.totals[r] *= factor;
  }

  // int4: p (minimum + scale * code), of which the first part is the same for every column
  void add_minima(int r, const Seen& s, const Vec* weights) {
    Vec total = splat(0);
    for (int lane = 0; lane < kBlockTokens; lane += Vec::width) {
      const Vec minima = where_seen(s, lane, load(value_minima + lane), splat(0));
      total = fma(weights[lane / Vec::width], minima, total);
    }
    const Vec offset = splat(sum(total));
    for (int c = 0; c < dim; c += Vec::width) store(sums(r) + c, load(sums(r) + c) + offset);
  }
};

}  // namespace
}  // namespace russet
