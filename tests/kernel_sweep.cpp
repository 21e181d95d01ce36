// Every variant of every kernel against its "ref", at sizes around the vector widths. The kernel tests in
// Python ask more; this one needs no Python, and so runs on chips that are only emulated. CMake builds it
// with RUSSET_PYTHON=OFF, and .ci/run does so for arm64.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "kernels/attention/attention_int8.h"
#include "kernels/attention/attention_mass.h"
#include "kernels/block_max/block_max.h"
#include "kernels/fit/fit.h"
#include "kernels/gate/gate.h"
#include "kernels/kv_store/kv_load.h"
#include "kernels/kv_store/kv_store.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matvec/matvec.h"
#include "kernels/merge/merge.h"
#include "kernels/norm/norm.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/quantize/quantize.h"
#include "kernels/rope/rope.h"
#include "kernels/scale_sums/scale_sums.h"
#include "kernels/slice_dot/slice_dot.h"
#include "kernels/sum_exp/sum_exp.h"
#include "kernels/widen/widen.h"

using namespace russet;
using Floats = std::vector<float>;

namespace {

constexpr double kU = 0x1p-24;  // the relative rounding error of one float operation

// How far a float sum of n products may be from the true one, as a share of the sum of their sizes.
double sum_bound(int n) {
  return (8 + std::sqrt(n)) * kU;
}

std::mt19937 g_random(1);

Floats normal(size_t n) {
  std::normal_distribution<float> draw;
  Floats x(n);
  for (float& value : x) value = draw(g_random);
  return x;
}

// A matrix of one of the stored types, two bytes off any alignment, and its values as floats.
struct Weights {
  Weights(DType type, int rows, int cols) : dtype(type), n_rows(rows), n_cols(cols) {
    const size_t n = size_t(n_rows) * size_t(n_cols);
    values = normal(n);
    bytes.resize(2 + n * size_of(dtype));
    for (size_t i = 0; i < n; ++i) {
      uint32_t bits = std::bit_cast<uint32_t>(values[i]);
      if (dtype == DType::f32) {
        std::memcpy(&bytes[2 + 4 * i], &bits, 4);
        continue;
      }
      // bf16 is the upper half of a float; for f16 any pattern with an exponent near 1 is as good as another.
      const uint16_t half = dtype == DType::bf16 ? uint16_t(bits >> 16) : uint16_t((bits & 0x8fff) | 0x3000);
      std::memcpy(&bytes[2 + 2 * i], &half, 2);
      values[i] = dtype == DType::bf16 ? to_float(bf16{half}) : to_float(f16{half});
    }
  }
  View view() const { return {bytes.data() + 2, dtype, n_rows, n_cols}; }

  DType dtype;
  int n_rows, n_cols;
  Floats values;
  std::vector<unsigned char> bytes;
};

// sum_c |w[r, c] x[c]|
double product_size(const Weights& w, int r, const float* x) {
  double size = 0;
  for (int c = 0; c < w.n_cols; ++c)
    size += std::abs(double(w.values[size_t(r * w.n_cols + c)]) * double(x[c]));
  return size;
}

// The largest error over all cases, as a share of what its bound allows.
struct Worst {
  void see(double actual, double expected, double bound) {
    const double share = actual == expected ? 0 : std::abs(actual - expected) / bound;
    if (!(share <= worst)) worst = std::isnan(share) ? HUGE_VAL : share;
    ++n;
  }
  // Of operations that are the same everywhere: equal bits, where a NaN is a NaN.
  void see_bits(float actual, float expected) {
    const bool same = std::bit_cast<uint32_t>(actual) == std::bit_cast<uint32_t>(expected);
    if (!same && !(std::isnan(actual) && std::isnan(expected))) worst = HUGE_VAL;
    ++n;
  }
  void see_bits(int actual, int expected) {
    if (actual != expected) worst = HUGE_VAL;
    ++n;
  }
  double worst = 0;
  long n = 0;
};

int g_passed = 0, g_failed = 0, g_skipped = 0;

// cases(run, ref, worst) runs both on every size.
template <typename Fn, typename Cases>
void sweep(const std::string& op, std::span<const Variant<Fn>> table, Cases cases) {
  for (const Variant<Fn>& variant : table) {
    if (&variant == &table.back()) break;  // "ref" itself
    std::printf("%-14s %-8s", op.c_str(), variant.name);
    if (!runs_here(variant.needs)) {
      std::printf("skipped: not on this chip\n");
      ++g_skipped;
      continue;
    }
    Worst worst;
    cases(variant.run, table.back().run, worst);
    const bool ok = worst.worst <= 1;
    std::printf("%-6s %8ld values, worst error %.2f of its bound\n", ok ? "ok" : "FAILED", worst.n,
                worst.worst);
    ++(ok ? g_passed : g_failed);
  }
}

void sweep_matvec(DType dtype) {
  sweep(std::string("matvec ") + name_of(dtype), matvec_variants(dtype),
        [&](auto run, auto ref, Worst& worst) {
          for (const int n_tokens : {1, 2, 3, 4, 7})
            for (const int n_rows : {1, 3, 7, 8, 9, 17, 37})
              for (const int n_cols : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1023}) {
                const Weights w(dtype, n_rows, n_cols);
                const Floats x = normal(size_t(n_tokens * n_cols));
                const size_t stride = size_t(n_rows) + 3;
                Floats y(size_t(n_tokens) * stride - 3, 7), expected = y;
                run({w.view(), x.data(), y.data(), n_tokens, stride});
                ref({w.view(), x.data(), expected.data(), n_tokens, stride});
                for (size_t i = 0; i < y.size(); ++i) {  // what lies between the rows stays as it was
                  const int t = int(i / stride), r = int(i % stride);
                  const double size = r < n_rows ? product_size(w, r, x.data() + t * n_cols) : 0;
                  worst.see(y[i], expected[i], sum_bound(n_cols) * size);
                }
              }
        });
}

void sweep_matmul(DType dtype) {
  sweep(std::string("matmul ") + name_of(dtype), matmul_variants(dtype),
        [&](auto run, auto ref, Worst& worst) {
          const Buffer scratch(kMatmulScratchFloats * sizeof(float));
          for (const int n_tokens : {1, 2, 7, 8, 9, 13, 25})
            for (const int n_rows : {1, 7, 8, 9, 31, 33, 97})
              for (const int n_cols : {1, 16, 33, 513}) {
                const Weights w(dtype, n_rows, n_cols);
                const Floats x = normal(size_t(n_tokens * n_cols));
                const size_t stride = size_t(n_rows) + 3;
                Floats y(size_t(n_tokens) * stride - 3, 7), expected = y;
                run({x.data(), w.view(), y.data(), n_tokens, stride, scratch.floats()});
                ref({x.data(), w.view(), expected.data(), n_tokens, stride, scratch.floats()});
                for (size_t i = 0; i < y.size(); ++i) {  // what lies between the rows stays as it was
                  const int t = int(i / stride), r = int(i % stride);
                  const double size = r < n_rows ? product_size(w, r, x.data() + t * n_cols) : 0;
                  worst.see(y[i], expected[i], sum_bound(n_cols) * size);
                }
              }
        });
}

void sweep_norm() {
  sweep("norm", norm_variants(), [](auto run, auto ref, Worst& worst) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer})
      for (const bool with_bias : {false, true})
        for (const int dim : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100, 1024}) {
          const int n_tokens = 3;
          const Floats x = normal(size_t(n_tokens * dim)), w = normal(size_t(dim)),
                       bias = normal(size_t(dim));
          Floats y(x.size(), NAN), expected = y;
          const NormArgs args{kind,  x.data(), w.data(), with_bias ? bias.data() : nullptr,
                              1e-2f, y.data(), n_tokens, dim};
          NormArgs expected_args = args;
          expected_args.y = expected.data();
          run(args);
          ref(expected_args);
          for (size_t i = 0; i < y.size(); ++i) {
            const size_t c = i % size_t(dim);
            const double size = std::abs(expected[i]) + 2 * std::abs(bias[c]) + std::abs(w[c]);
            worst.see(y[i], expected[i], 2 * sum_bound(dim) * size);
          }
        }
  });
}

void sweep_rope() {
  sweep("rope", rope_variants(), [](auto run, auto ref, Worst& worst) {
    for (const int half : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 65})
      for (const int n_heads : {1, 3}) {
        const int head_dim = 2 * half + 2;
        const Floats x = normal(size_t(n_heads * head_dim)), turns = normal(size_t(half));
        Floats cos, sin, y = x, expected = x;
        for (const float turn : turns) cos.push_back(std::cos(turn)), sin.push_back(std::sin(turn));
        run({y.data(), cos.data(), sin.data(), n_heads, head_dim, 2 * half});
        ref({expected.data(), cos.data(), sin.data(), n_heads, head_dim, 2 * half});
        for (size_t i = 0; i < y.size(); ++i) {
          const int c = int(i) % head_dim, partner = c < half ? half : -half;
          const double size =
              c < 2 * half ? std::abs(double(x[i])) + std::abs(double(x[i + size_t(partner)])) : 0;
          worst.see(y[i], expected[i], 3 * kU * size);
        }
      }
  });
}

void sweep_gate() {
  sweep("gate", gate_variants(), [](auto run, auto ref, Worst& worst) {
    for (const Activation activation :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu})
      for (const bool with_up : {false, true})
        for (const int n : {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 1000}) {
          Floats x = normal(size_t(n));
          for (float& value : x) value *= 8;
          const Floats up = normal(size_t(n));
          Floats y(size_t(n), NAN), expected = y;
          run({activation, x.data(), with_up ? up.data() : nullptr, y.data(), n});
          ref({activation, x.data(), with_up ? up.data() : nullptr, expected.data(), n});
          // The gelus multiply x by 1 + f(x) with f near -1 on the left: their error is a share of x.
          const bool of_x = activation == Activation::gelu || activation == Activation::gelu_tanh;
          for (size_t i = 0; i < y.size(); ++i) {
            const double size = of_x ? double(x[i]) * (with_up ? double(up[i]) : 1) : double(expected[i]);
            worst.see(y[i], expected[i], 8 * kU * std::abs(size));
          }
        }
  });
}

void sweep_block_max() {
  sweep("block_max", block_max_variants(), [](auto run, auto ref, Worst& worst) {
    for (const int n : {1, 3, 17, 127, 128, 129, 255, 257, 1000})
      for (const float odd : {0.0f, -HUGE_VALF, HUGE_VALF, NAN})
        for (const int at : {0, n / 2, n - 1}) {
          Floats x = normal(size_t(n));
          x[size_t(at)] = odd;
          Floats maxima(size_t(n_blocks(n))), expected = maxima;
          run({x.data(), n, maxima.data()});
          ref({x.data(), n, expected.data()});
          for (size_t b = 0; b < maxima.size(); ++b) worst.see_bits(maxima[b], expected[b]);
        }
  });
}

void sweep_sum_exp() {
  sweep("sum_exp", sum_exp_variants(), [](auto run, auto ref, Worst& worst) {
    for (const float scale : {0.01f, 1.0f, 4.0f})
      for (const int n : {1, 3, 17, 127, 128, 129, 255, 257, 1000}) {
        Floats x = normal(size_t(n));
        x[size_t(n / 2)] = -HUGE_VALF;
        Floats sums(size_t(n_blocks(n))), weights(size_t(n), NAN), sums_expected = sums, expected = weights;
        run({x.data(), n, 5.0f, scale, sums.data(), weights.data()});
        ref({x.data(), n, 5.0f, scale, sums_expected.data(), expected.data()});
        // exp itself, and as much of its result as two roundings of its argument, at most 10 * scale, are.
        const double share = 4 * kU + 2 * 10 * double(scale) * kU;
        for (size_t i = 0; i < weights.size(); ++i)
          worst.see(weights[i], expected[i], share * double(expected[i]));
        for (size_t b = 0; b < sums.size(); ++b)
          worst.see(sums[b], sums_expected[b], (share + sum_bound(kBlockFloats)) * double(sums_expected[b]));
      }
  });
}

// Every pattern of 16 bits, and then lengths that are no multiple of any width.
void sweep_widen(DType dtype) {
  sweep(std::string("widen ") + name_of(dtype), widen_variants(), [&](auto run, auto ref, Worst& worst) {
    std::vector<uint32_t> bits(size_t(1) << 15);
    for (uint32_t i = 0; i < bits.size(); ++i) bits[i] = (2 * i + 1) << 16 | 2 * i;
    for (const size_t n :
         {size_t(1) << (dtype == DType::f32 ? 15 : 16), size_t(1), size_t(5), size_t(9), size_t(31)}) {
      std::vector<unsigned char> x(n * size_of(dtype));
      std::memcpy(x.data(), bits.data(), x.size());
      Floats y(n, 7), expected(n, 7);
      run({x.data(), dtype, y.data(), n});
      ref({x.data(), dtype, expected.data(), n});
      for (size_t i = 0; i < n; ++i) {
        if (std::isnan(y[i]) && std::isnan(expected[i])) continue;
        worst.see(y[i], expected[i], 0);
      }
    }
  });
}

// A pool whose blocks hold the keys and values of one head, from block 1 on.
struct Blocks {
  Blocks(const KvFormat& f, const Floats& k, const Floats& v)
      : format(f), memory((k.size() / size_t(f.head_dim * kBlockTokens) + 2) * f.block_bytes()) {
    const size_t dim = size_t(f.head_dim), n_keys = k.size() / dim;
    for (size_t at = 0; at < n_keys; at += kBlockTokens) {
      table.push_back(BlockId(table.size() + 1));
      const int n_tokens = int(std::min<size_t>(kBlockTokens, n_keys - at));
      kv_store_variants().back().run(
          {&k[at * dim], &v[at * dim], dim, n_tokens, 0, memory.bytes() + table.back() * f.block_bytes(), f});
    }
  }
  Blocks(const KvFormat& f, int n_keys)
      : Blocks(f, normal(size_t(n_keys * f.head_dim)), normal(size_t(n_keys * f.head_dim))) {}

  KvFormat format;
  Buffer memory;
  std::vector<BlockId> table;
};

constexpr KvType kKvTypes[] = {KvType::f32, KvType::f16, KvType::bf16, KvType::int8, KvType::int4};

struct AttentionCase {
  int n_tokens, n_heads, head_dim, n_keys, window, n_sinks;
  float softcap;
};

// slack: what a step of 8 bits that falls to the other side may change, as a share of the largest value
// or, where it is below 0: bits must be the same
void attention_case(AttentionFn run, AttentionFn ref, const AttentionCase& c, double slack, Worst& worst) {
  const KvType keys = kKvTypes[g_random() % 4], values = kKvTypes[g_random() % 5];
  Blocks blocks({keys, values, c.head_dim, true}, c.n_keys);
  if (c.n_keys > 200 && g_random() % 2) blocks.table[1] = kNoBlock;
  static const Buffer scratch(kAttentionScratchFloats * sizeof(float));
  const size_t stride = size_t(c.n_heads * c.head_dim) + 3;
  const Floats q = normal(size_t(c.n_tokens) * stride);
  Floats out(q.size(), 7), expected = out;
  AttentionArgs a{q.data(),
                  out.data(),
                  stride,
                  c.n_tokens,
                  c.n_heads,
                  c.n_keys - c.n_tokens,
                  blocks.table.data(),
                  blocks.memory.bytes(),
                  blocks.format,
                  c.window,
                  c.n_sinks,
                  1 / std::sqrt(float(c.head_dim)),
                  c.softcap,
                  scratch.floats()};
  attention(*run, a);
  a.out = expected.data();
  attention(*ref, a);
  // A score that is off by e changes its weight by the share e, and the sum of the weights likewise; exp is
  // within 2 ulp, tanh within 2e-7; a run more is an exp more. The sizes of the products in q . k add up to
  // at most head_dim; values stay below 4, and the parts that make those of int4 below 12.
  const double score_error = sum_bound(c.head_dim) * std::sqrt(c.head_dim) + double(c.softcap) * 3e-7;
  const double share =
      2 * score_error + 2 * sum_bound(c.n_keys) + (2 + c.n_keys / kRunTokens) * 8 * kU + slack;
  for (size_t i = 0; i < out.size(); ++i)  // what lies between the tokens stays as it was
    if (slack < 0)
      worst.see_bits(out[i], expected[i]);
    else
      worst.see(out[i], expected[i], share * (values == KvType::int4 ? 12 : 4));
}

void sweep_attention(const char* name, std::span<const Variant<AttentionFn>> table, double slack) {
  sweep(name, table, [&](auto run, auto ref, Worst& worst) {
    for (const int n_heads : {1, 2, 3, 4, 5, 6, 7, 16})
      for (const int n_tokens : {1, 2, 4, 9}) {
        if (n_tokens * n_heads > kAttentionRows) continue;
        for (const int head_dim : {1, 3, 4, 5, 8, 9, 17, 31, 64, 80, kMaxHeadDim + 0})
          attention_case(*run, *ref, {n_tokens, n_heads, head_dim, 77, 0, 0, 0}, slack, worst);
      }
    for (const int n_tokens : {1, 5, 13})
      for (const int n_keys : {13, 63, 64, 65, 300, 1030})
        for (const int window : {0, 1, 50, 100})
          for (const int n_sinks : {0, 3})
            for (const float softcap : {0.0f, 3.0f})
              attention_case(*run, *ref, {n_tokens, 2, 24, n_keys, window, n_sinks, softcap}, slack, worst);
  });
}

// A row has the same bits alone as in a call with others; damage that only the last token sees changes no
// other.
void sweep_attention_company() {
  sweep("attention rows", attention_variants(), [](auto run, auto, Worst& worst) {
    static const Buffer scratch(kAttentionScratchFloats * sizeof(float));
    for (const KvType keys : {KvType::f32, KvType::f16, KvType::bf16, KvType::int8})
      for (const KvType values : kKvTypes)
        for (const float damage : {NAN, HUGE_VALF, 3.4e38f})
          for (const auto& [n_tokens, n_heads] : {std::array{2, 1}, std::array{7, 5}, std::array{21, 3}})
            for (const auto& [window, n_sinks] : {std::array{0, 0}, std::array{50, 0}, std::array{9, 5}}) {
              const int head_dim = 33, n_keys = 140;
              Floats k = normal(size_t(n_keys * head_dim)), v = normal(k.size());
              k.back() = NAN, v.back() = damage;
              const Blocks blocks({keys, values, head_dim, true}, k, v);
              const size_t stride = size_t(n_heads * head_dim);
              const Floats q = normal(size_t(n_tokens) * stride);
              Floats out(q.size()), alone(q.size());
              AttentionArgs a{q.data(),
                              out.data(),
                              stride,
                              n_tokens,
                              n_heads,
                              n_keys - n_tokens,
                              blocks.table.data(),
                              blocks.memory.bytes(),
                              blocks.format,
                              window,
                              n_sinks,
                              0.2f,
                              0,
                              scratch.floats()};
              attention(*run, a);
              a.n_tokens = a.n_heads = 1;
              for (size_t row = 0; row < size_t(n_tokens * n_heads); ++row) {
                const size_t at = row * size_t(head_dim);
                a.q = &q[at], a.out = &alone[at], a.pos = n_keys - n_tokens + int(row) / n_heads;
                attention(*run, a);
                const bool sees_damage = a.pos == n_keys - 1;
                for (size_t i = at; i < at + size_t(head_dim); ++i) {
                  worst.see_bits(out[i], alone[i]);
                  worst.see_bits(int(std::isnan(out[i])), int(sees_damage));
                }
              }
            }
  });
}

// Scores and sums that show the last bits of q, keys, weights and values.
void sweep_attention_digits() {
  sweep("attention digits", attention_variants(), [](auto run, auto ref, Worst& worst) {
    static const Buffer scratch(kAttentionScratchFloats * sizeof(float));
    const auto see = [&](KvType type, const Floats& q, const Floats& k, const Floats& v, float scale) {
      const Blocks blocks({type, type, 2, true}, k, v);
      float out[2], expected[2];
      AttentionArgs a{
          q.data(),      out, 2, 1,     1, int(k.size()) / 2 - 1, blocks.table.data(), blocks.memory.bytes(),
          blocks.format, 0,   0, scale, 0, scratch.floats()};
      attention(*run, a);
      a.out = expected;
      attention(*ref, a);
      // exp is within 2 ulp, and there are a sum of two and a quotient.
      for (int c = 0; c < 2; ++c) worst.see(out[c], expected[c], 8 * kU * std::abs(double(expected[c])));
    };
    const float digits = 1 + 0x1p-9f + 0x1p-18f + 0x1p-23f;  // far apart: no rounding keeps two of them
    for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16}) {
      const float stored = type == KvType::f32 ? digits : type == KvType::f16 ? 1 + 0x1p-9f : 1;
      see(type, {digits, -1}, {1, 1, 0, 0}, {1, 0, 0, 1}, 512);
      see(type, {1, -1}, {stored, 1, 0, 0}, {1, 0, 0, 1}, 512);
      see(type, {1, 0}, {1, 0}, {stored, 3 * stored}, 1);
      for (int i = 1; i < 32; ++i) see(type, {float(i) / 32, 0}, {1, 0, 0, 0}, {0, 1, 1, 0}, 1);
    }
  });
}

void sweep_attention_mass() {
  sweep("attention_mass", attention_mass_variants(), [](auto run, auto ref, Worst& worst) {
    for (const KvType keys : {KvType::f32, KvType::f16, KvType::bf16, KvType::int8})
      for (const int n_tokens : {1, 5})
        for (const int head_dim : {1, 5, 16, 33, 128})
          for (const int n_keys : {5, 64, 65, 300})
            for (const int window : {0, 50}) {
              Blocks blocks({keys, KvType::f32, head_dim, true}, n_keys);
              if (n_keys > 200) blocks.table[1] = kNoBlock;
              const size_t stride = size_t(2 * head_dim) + 3;
              const Floats q = normal(size_t(n_tokens) * stride);
              Floats mass(blocks.table.size(), 0.5f), expected = mass;
              Floats scratch(attention_mass_scratch(2 * n_tokens, n_keys, head_dim));
              AttentionMassArgs a{q.data(),
                                  stride,
                                  n_tokens,
                                  2,
                                  n_keys - n_tokens,
                                  blocks.table.data(),
                                  blocks.memory.bytes(),
                                  blocks.format,
                                  window,
                                  3,
                                  1 / std::sqrt(float(head_dim)),
                                  window ? 3.0f : 0.0f,
                                  mass.data(),
                                  scratch.data()};
              run(a);
              a.mass = expected.data();
              ref(a);
              // A score that is off by e changes its share by the share 2 e at most, and the square by 4 e.
              const double error = 4 * (sum_bound(head_dim) * std::sqrt(head_dim) + 1e-6) + 20 * kU;
              for (size_t i = 0; i < mass.size(); ++i)
                worst.see(mass[i], expected[i], error * std::max(1.0, double(expected[i])));
            }
  });
}

// Tokens of every kind in turn: normal values, tiny and huge ones, an offset, zeros, and one that is damaged.
void sweep_kv_store() {
  sweep("kv_store", kv_store_variants(), [](auto run, auto ref, Worst& worst) {
    for (const float damage : {0.0f, NAN, HUGE_VALF, -HUGE_VALF})
      for (const bool by_columns : {false, true})
        for (const KvType type : kKvTypes)
          for (const int head_dim : {1, 3, 4, 5, 8, 9, 15, 16, 17, 64, 80, kMaxHeadDim + 0})
            for (const auto& [slot, n_tokens] : {std::array{0, 64}, std::array{5, 1}, std::array{60, 4}}) {
              const size_t dim = size_t(head_dim), stride = dim + 3;
              Floats k = normal(size_t(n_tokens) * stride);
              for (size_t i = 0; i < k.size(); ++i) {
                const float factors[] = {1, 1e-20f, 1e20f, 0, 1e-42f, 1, 1};
                const size_t kind = i / stride % 7;
                k[i] = k[i] * factors[kind] + (kind == 5 ? 100.0f : 0.0f);
                if (kind == 6 && i % stride == dim / 2) k[i] += damage;
              }
              const KvFormat format{type == KvType::int4 ? KvType::f32 : type, type, head_dim, by_columns};
              const Buffer block(format.block_bytes()), expected(format.block_bytes());
              run({k.data(), k.data(), stride, n_tokens, slot, block.bytes(), format});
              ref({k.data(), k.data(), stride, n_tokens, slot, expected.bytes(), format});
              Floats x(dim), y(dim);
              const int end = std::min<int>(slot + n_tokens + 2, kBlockTokens);
              for (int t = std::max(slot - 2, 0); t < end;
                   ++t)  // the neighbours too, which stay as they were
                for (const auto load : {load_key, load_value}) {
                  load(format, block.bytes(), t, x.data());
                  load(format, expected.bytes(), t, y.data());
                  for (size_t c = 0; c < dim; ++c) worst.see_bits(x[c], y[c]);
                }
            }
  });
}

// Groups of every kind in turn: normal values, tiny and huge ones, zeros, too small to divide by, halves.
void sweep_quantize() {
  sweep("quantize", quantize_variants(), [](auto run, auto ref, Worst& worst) {
    for (const float damage : {0.0f, NAN, HUGE_VALF, -HUGE_VALF})
      for (const int group_size : {32, 64, 128})
        for (const int n_tokens : {1, 3}) {
          const int n_groups = 7, n_cols = n_groups * group_size;
          Floats x = normal(size_t(n_tokens * n_cols));
          for (size_t i = 0; i < x.size(); ++i) {
            const size_t c = i % size_t(group_size);
            const float factors[] = {1, 1e-20f, 1e20f, 0, 1e-40f};
            const size_t kind = i / size_t(group_size) % size_t(n_groups);
            if (kind < 5) x[i] *= factors[kind];
            if (kind == 5) x[i] = c == 0 ? -127 : float(c) - 0.5f;  // codes are halves: to even
            if (kind == 6 && c + 1 == size_t(group_size)) x[i] += damage;
          }
          const size_t n_scales = size_t(n_tokens * n_groups);
          std::vector<int8_t> codes(x.size(), 77), expected_codes = codes;
          Floats scales(n_scales, 7), expected_scales = scales;
          std::vector<int32_t> sums(n_scales, 7), expected_sums = sums;
          run({x.data(), codes.data(), scales.data(), sums.data(), n_tokens, n_cols, group_size});
          ref({x.data(), expected_codes.data(), expected_scales.data(), expected_sums.data(), n_tokens,
               n_cols, group_size});
          for (size_t i = 0; i < codes.size(); ++i) worst.see_bits(codes[i], expected_codes[i]);
          for (size_t i = 0; i < n_scales; ++i) {
            worst.see_bits(scales[i], expected_scales[i]);
            worst.see_bits(sums[i], expected_sums[i]);
          }
        }
  });
}

// Groups of every kind in turn: normal values, tiny and huge ones, an offset, halves, all alike, zeros of
// both signs, the largest floats, and one that is damaged.
void sweep_fit() {
  sweep("fit", fit_variants(), [](auto run, auto ref, Worst& worst) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
      for (const int bits : {8, 4})
        for (const bool symmetric : {false, true})
          for (const int group_size : {32, 64, 128})
            for (const int n_groups : {1, 3, 4, 5, 9, 33}) {
              const size_t n = size_t(n_groups), size = size_t(group_size);
              Floats w = Weights(dtype, n_groups, group_size).values;
              for (size_t i = 0; i < w.size(); ++i) {
                const float normal = w[i], one = w[i / size * size];
                const float kinds[] = {normal,
                                       normal * 1e-30f,
                                       normal * 1e-44f,
                                       normal * 1e18f,
                                       100 + normal,
                                       std::nearbyint(normal) / 2,
                                       one,
                                       std::copysign(one, normal),
                                       std::copysign(0.0f, normal),
                                       std::copysign(3.4e38f, normal),
                                       i % size == 5 ? NAN : normal};
                w[i] = kinds[i / size % 11];
              }
              std::vector<uint8_t> codes(w.size(), 77), expected_codes = codes;
              Floats scales(n, 7), expected_scales = scales, biases = scales, expected_biases = scales;
              run({w.data(), n_groups, group_size, bits, symmetric, dtype, codes.data(), scales.data(),
                   biases.data()});
              ref({w.data(), n_groups, group_size, bits, symmetric, dtype, expected_codes.data(),
                   expected_scales.data(), expected_biases.data()});
              for (size_t i = 0; i < codes.size(); ++i) worst.see_bits(codes[i], expected_codes[i]);
              for (size_t g = 0; g < n; ++g) {
                worst.see_bits(scales[g], expected_scales[g]);
                worst.see_bits(biases[g], expected_biases[g]);
              }
            }
  });
}

// Random codes, or extremes alone; rows past the last hold random ones too, which nothing may show.
struct PackedWeights {
  PackedWeights(int n_rows, int n_cols, int bits, int group_size, DType dtype, bool symmetric, bool extreme,
                bool sliced = false)
      : memory(packed_bytes(n_rows, n_cols, bits, group_size, dtype, symmetric, sliced)),
        view(packed_at(memory.bytes(), n_rows, n_cols, bits, group_size, dtype, symmetric, sliced)) {
    auto* codes = reinterpret_cast<uint8_t*>(memory.bytes());
    const size_t n_codes = size_t(view.n_bands()) * view.band_bytes();
    for (size_t i = 0; i < n_codes; ++i) {
      const uint8_t lowest = bits == 8 ? 0x80 : 0x00, highest = bits == 8 ? 0x7f : 0xff;
      codes[i] = !extreme ? uint8_t(g_random()) : g_random() % 8 ? lowest : highest;
    }
    const size_t n_scales = size_t(view.n_bands()) * view.band_scales();
    for (const void* of_groups : {view.scales, view.biases}) {
      if (!of_groups) continue;
      const Weights values(dtype, 1, int(n_scales));
      std::memcpy(const_cast<void*>(of_groups), values.view().data, n_scales * size_of(dtype));
    }
  }
  Buffer memory;
  Packed view;
};

struct QmatmulCase {
  int n_tokens, n_rows, n_cols, bits, group_size;
  DType dtype;
  bool symmetric, extreme;
};

void qmatmul_case(QmatmulFn run, QmatmulFn ref, const QmatmulCase& c, const Buffer& scratch, Worst& worst) {
  const PackedWeights w(c.n_rows, c.n_cols, c.bits, c.group_size, c.dtype, c.symmetric, c.extreme);
  const size_t n_x = size_t(c.n_tokens) * size_t(c.n_cols), n_scales = n_x / size_t(c.group_size);
  std::vector<int8_t> codes(n_x);
  Floats scales = normal(n_scales);
  std::vector<int32_t> sums(n_scales, 0);
  for (size_t i = 0; i < n_x; ++i) {
    codes[i] = int8_t(c.extreme ? (g_random() % 8 ? -127 : 127) : int(g_random() % 255) - 127);
    sums[i / size_t(c.group_size)] += codes[i];
  }
  const size_t stride = size_t(c.n_rows) + 3;
  Floats y(size_t(c.n_tokens) * stride - 3, 7), expected = y;
  auto* memory = reinterpret_cast<uint8_t*>(scratch.bytes());
  const QuantizedX x{codes.data(), scales.data(), sums.data()};
  run({w.view, x, y.data(), c.n_tokens, stride, memory});
  ref({w.view, x, expected.data(), c.n_tokens, stride, memory});
  for (size_t i = 0; i < y.size(); ++i)  // what lies between the rows stays as it was
    worst.see_bits(y[i], expected[i]);
}

void sweep_qmatmul() {
  sweep("qmatmul", qmatmul_variants(), [](auto run, auto ref, Worst& worst) {
    const Buffer scratch(kQmatmulScratchBytes);
    for (const int n_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 33})
      for (const int n_rows : {1, 15, 16, 17, 33, 50})
        for (const int bits : {8, 4})
          for (const int group_size : {32, 64, 128})
            for (const bool symmetric : {false, true}) {
              const DType dtype = std::array{DType::f32, DType::f16, DType::bf16}[g_random() % 3];
              const int n_cols = group_size * int(1 + g_random() % 4);
              const bool extreme = g_random() % 4 == 0;
              qmatmul_case(*run, *ref,
                           {n_tokens, n_rows, n_cols, bits, group_size, dtype, symmetric, extreme}, scratch,
                           worst);
            }
    for (const int n_tokens : {1, 4, 7})  // columns of a real model, several panels of them
      for (const int bits : {8, 4})
        qmatmul_case(*run, *ref, {n_tokens, 20, 9728, bits, 128, DType::bf16, bits == 8, false}, scratch,
                     worst);
  });
}

// A sliced matrix: exact sums, whole tiles, and products that are qmatmul's to the bit.
void sweep_slices() {
  struct Case {
    Case(int n_rows, int n_cols, int group_size, bool symmetric)
        : w(n_rows, n_cols, 8, group_size, std::array{DType::f32, DType::f16, DType::bf16}[g_random() % 3],
            symmetric, false, true),
          scales(normal(size_t(n_cols / group_size))),
          codes(size_t(n_cols)),
          sums(scales.size(), 0) {
      for (size_t c = 0; c < codes.size(); ++c) {
        codes[c] = int8_t(int(g_random() % 255) - 127);
        sums[c / size_t(group_size)] += codes[c];
      }
    }
    QuantizedX x() const { return {codes.data(), scales.data(), sums.data()}; }
    PackedWeights w;
    Floats scales;
    std::vector<int8_t> codes;
    std::vector<int32_t> sums;
  };
  const auto each_case = [](const auto& use) {
    for (const int group_size : {32, 64, 128})
      for (const int n_groups : {1, 2, 5, 9})
        for (const bool symmetric : {false, true})
          use(Case(40, n_groups * group_size, group_size, symmetric));
  };
  const auto words = [](const Buffer& buffer) { return reinterpret_cast<int32_t*>(buffer.bytes()); };
  sweep("slice_dot", slice_dot_variants(), [&](auto run, auto ref, Worst& worst) {
    each_case([&](const Case& c) {
      const Packed& w = c.w.view;
      for (int b = 0; b < w.n_bands(); ++b) {
        const Buffer sums(w.band_scales() * 4), expected(w.band_scales() * 4);
        for (int i = 0; i < kSlices; ++i) {
          run({w.slice(i, b), i, w.n_cols, w.group_size, c.codes.data(), words(sums)});
          ref({w.slice(i, b), i, w.n_cols, w.group_size, c.codes.data(), words(expected)});
        }
        for (size_t i = 0; i < w.band_scales(); ++i) worst.see_bits(words(sums)[i], words(expected)[i]);
      }
    });
  });
  sweep("merge", merge_variants(), [&](auto run, auto ref, Worst& worst) {
    each_case([&](const Case& c) {
      const Packed& w = c.w.view;
      for (int b = 0; b < w.n_bands(); ++b) {
        std::vector<uint8_t> tiles(w.band_bytes()), expected(w.band_bytes());
        run({{w.slice(0, b), w.slice(1, b), w.slice(2, b)}, w.n_cols, tiles.data()});
        ref({{w.slice(0, b), w.slice(1, b), w.slice(2, b)}, w.n_cols, expected.data()});
        for (size_t i = 0; i < tiles.size(); ++i) worst.see_bits(int(tiles[i]), int(expected[i]));
      }
    });
  });
  sweep("scale_sums", scale_sums_variants(), [&](auto run, auto ref, Worst& worst) {
    each_case([&](const Case& c) {
      const Packed& w = c.w.view;
      const Buffer sums(w.band_scales() * 4);
      for (int b = 0; b < w.n_bands(); ++b)
        for (const int center : {120, 126, 128}) {
          for (size_t i = 0; i < w.band_scales(); ++i)
            words(sums)[i] = int32_t(g_random() % 4000000) - 2000000;
          float y[kBandRows], expected[kBandRows];
          run({w.rows(b * kBandRows, w.n_rows), words(sums), center, c.x(), y});
          ref({w.rows(b * kBandRows, w.n_rows), words(sums), center, c.x(), expected});
          for (int r = 0; r < kBandRows; ++r) worst.see_bits(y[r], expected[r]);
        }
    });
  });
}

}  // namespace

int main() {
  std::printf("this chip has");
  for (const std::string& name : cpu_feature_names()) std::printf(" %s", name.c_str());
  std::printf("\n");
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    sweep_matvec(dtype);
    sweep_matmul(dtype);
    sweep_widen(dtype);
  }
  sweep_norm();
  sweep_rope();
  sweep_gate();
  sweep_block_max();
  sweep_sum_exp();
  sweep_kv_store();
  sweep_attention("attention", attention_variants(), 0);
  sweep_attention_company();
  sweep_attention_digits();
  sweep_attention("attention_sage", attention_variants(AttentionKind::sage), 0.02);
  sweep_attention("attention_integer", attention_variants(AttentionKind::integer), 0.02);
#if defined(__x86_64__)
  // The same steps on the same vectors, and integers besides: AMX has the bits of VNNI.
  sweep_attention("sage bits", attention_variants(AttentionKind::sage).first(2), -1);
  sweep_attention("integer bits", attention_variants(AttentionKind::integer).first(2), -1);
#endif
  sweep_attention_mass();
  sweep_quantize();
  sweep_fit();
  sweep_qmatmul();
  sweep_slices();
  std::printf("%d passed, %d failed, %d skipped\n", g_passed, g_failed, g_skipped);
  return g_failed > 0;
}
