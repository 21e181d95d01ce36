#include "backends/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/attention_work.h"
#include "core/check.h"
#include "kernels/attention/attention_mass.h"
#include "kernels/kv_store/kv_store.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matvec/matvec.h"
#include "kernels/merge/merge.h"
#include "kernels/qmatmul/crossover.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/rope/rope.h"
#include "kernels/widen/widen.h"
#include "kv_cache/kv_cache.h"

namespace russet {

// Up to this many tokens the weights go through matvec, above it through matmul. Measured:
// benchmarks/kernels.py --crossover.
static constexpr int kFewTokens = 32;

// Up to this many tokens one thread is done with the small operations before others would have begun.
static constexpr int kSerialTokens = 4;

// Rows whose results are kept in scratch between a product and what is fused behind it.
static constexpr int kBlockRows = 512;

// Parts of a matrix are cut at multiples of 16 rows, so that no two threads write to one cache line.
static constexpr int kRowStep = 16;

static int checked(int n_threads) {
  check(n_threads >= 1 && n_threads <= 1024, ErrorKind::usage, "threads: expected 1 to 1024, got ",
        n_threads);
  return n_threads;
}

CpuOps::CpuOps(const Config& config, int n_threads, int n_prefill_threads, AttentionKind attention,
               double head_trust)
    : config_(config),
      n_decode_threads_(checked(n_threads)),
      n_prefill_threads_(checked(n_prefill_threads)),
      attend_(attention_of(attention)),
      head_trust_(head_trust),
      rooms_(size_t(n_decode_threads_)) {}

static size_t q_dim(const Config& c) {
  return size_t(c.n_heads) * size_t(c.head_dim);
}
static size_t kv_dim(const Config& c) {
  return size_t(c.n_kv_heads) * size_t(c.head_dim);
}
static int widest_input(const Config& c) {
  return std::max({c.dim, int(q_dim(c)), c.ffn_dim});
}

// Bands of a sliced matrix that are merged at once.
static constexpr int kMergedBands = 4;
static_assert(kQmatmulScratchBytes + size_t(kMergedBands * kBandRows) * kMaxSlicedCols <=
              kMatmulScratchFloats * sizeof(float));

// Each thread's scratch: what the products need for themselves, then a block of results.
static_assert(kQmatmulScratchBytes <= kMatmulScratchFloats * sizeof(float) &&
              kUnpackedFloats <= kMatmulScratchFloats && kAttentionScratchFloats <= kMatmulScratchFloats);
static size_t scratch_floats(int n_tokens) {
  return kMatmulScratchFloats + size_t(n_tokens) * kBlockRows;
}

float* CpuOps::matmul_scratch(Share share) const {
  return scratch_.floats() + size_t(share.thread) * scratch_floats(capacity_);
}
float* CpuOps::block_scratch(Share share) const {
  return matmul_scratch(share) + kMatmulScratchFloats;
}

// Makes room for n_tokens, and chooses the threads.
void CpuOps::reserve(int n_tokens) {
  n_threads_ = n_tokens <= kFewTokens ? n_decode_threads_ : n_prefill_threads_;
  if (n_tokens <= capacity_) return;
  const size_t n = size_t(n_tokens);
  const size_t row = size_t(config_.dim) + 2 * q_dim(config_) + 2 * kv_dim(config_) + size_t(config_.ffn_dim);
  activations_.reserve(n * row * sizeof(float));
  whole_.reserve(n * size_t(config_.dim) * sizeof(float));
  const size_t n_threads = size_t(std::max(n_decode_threads_, n_prefill_threads_));
  scratch_.reserve(n_threads * scratch_floats(n_tokens) * sizeof(float));
  shared_room_.reserve(n_tokens, widest_input(config_));
  for (InputRoom& room : rooms_) room.reserve(std::min(n_tokens, kFewTokens), widest_input(config_));
  capacity_ = n_tokens;
}

// All activations are f32 here.
static float* floats(void* rows) {
  return static_cast<float*>(rows);
}
static const float* floats(const void* rows) {
  return static_cast<const float*>(rows);
}

Activations CpuOps::activations(int n_tokens) {
  reserve(n_tokens);
  const size_t n = size_t(n_tokens);
  float* x = activations_.floats();
  float* q = x + n * size_t(config_.dim);
  float* k = q + n * q_dim(config_);
  float* v = k + n * kv_dim(config_);
  float* attended = v + n * kv_dim(config_);
  float* hidden = attended + n * q_dim(config_);
  return {x, q, k, v, attended, hidden};
}

// ---- norms ----

void CpuOps::apply_norm(const NormWeights& n, const float* x, int n_tokens, float* y) const {
  norm({config_.norm, x, n.w, n.bias, config_.norm_eps, y, n_tokens, n.dim});
}

// Few tokens: every thread prepares them for itself, which is cheaper than waiting for another to do it.
Input CpuOps::input_here(const NormWeights& n, const float* x, int n_tokens, const Forms& forms,
                         Share share) {
  const InputRoom& room = rooms_[size_t(share.thread)];
  const Input input = room.input(n, x, n_tokens, forms);
  room.prepare(config_, n, x, 0, n_tokens, forms, input);
  return input;
}

// Many tokens: each is prepared once, by one thread.
Input CpuOps::input_once(const NormWeights& n, const float* x, int n_tokens, const Forms& forms) {
  const Input input = shared_room_.input(n, x, n_tokens, forms);
  parallel(n_threads_, [&](Share share) {
    const auto [begin, end] = share.of(n_tokens);
    shared_room_.prepare(config_, n, x, begin, end, forms, input);
  });
  return input;
}

// ---- products ----

// A sliced matrix. For more than one token a few bands at a time are made tiles of, which are still in the
// cache when they are read.
static void sliced_rows(const Packed& w, const QuantizedX& x, int n_tokens, float* y, size_t y_stride,
                        uint8_t* scratch) {
  if (n_tokens == 1) return sliced_product(w, x, y, reinterpret_cast<int32_t*>(scratch));
  uint8_t* tiles = scratch + kQmatmulScratchBytes;
  for (int b = 0; b < w.n_bands(); b += kMergedBands) {
    const int begin = b * kBandRows, end = std::min(w.n_rows, begin + kMergedBands * kBandRows);
    Packed part = w.rows(begin, end);
    for (int i = 0; i < part.n_bands(); ++i)
      merge({{part.slice(0, i), part.slice(1, i), part.slice(2, i)},
             w.n_cols,
             tiles + size_t(i) * w.band_bytes()});
    part.codes = tiles;
    part.radii = nullptr;
    qmatmul({part, x, y + begin, n_tokens, y_stride, scratch});
  }
}

// y[t * y_stride + r - begin] = linear(x[t])[r] for r in [begin, end)
static void linear_rows(const Linear& linear, int begin, int end, const Input& in, int n_tokens, float* y,
                        size_t y_stride, float* scratch) {
  if (const Packed& w = linear.w.packed; w && w.blas_tokens > 0 && n_tokens >= w.blas_tokens) {
    unpacked_matmul(w.rows(begin, end), in.x, y, n_tokens, y_stride, scratch);
  } else if (w.sliced()) {
    sliced_rows(w.rows(begin, end), in.in_groups_of(w.group_size), n_tokens, y, y_stride,
                reinterpret_cast<uint8_t*>(scratch));
  } else if (w) {
    qmatmul({w.rows(begin, end), in.in_groups_of(w.group_size), y, n_tokens, y_stride,
             reinterpret_cast<uint8_t*>(scratch)});
  } else if (n_tokens <= kFewTokens) {
    matvec({linear.w.floats.rows(begin, end), in.x, y, n_tokens, y_stride});
  } else {
    matmul({in.x, linear.w.floats.rows(begin, end), y, n_tokens, y_stride, scratch});
  }
  if (!linear.bias) return;
  for (int t = 0; t < n_tokens; ++t)
    for (int r = begin; r < end; ++r) y[size_t(t) * y_stride + size_t(r - begin)] += linear.bias[r];
}

void CpuOps::norm_linear(const NormWeights& n, const float* x, int n_tokens,
                         std::initializer_list<LinearOut> outputs) {
  reserve(n_tokens);
  const bool few = n_tokens <= kFewTokens;
  Forms forms;
  for (const LinearOut& out : outputs) forms.add(out.linear);
  const Input once = few ? Input{} : input_once(n, x, n_tokens, forms);
  parallel(n_threads_, [&](Share share) {
    const Input in = few ? input_here(n, x, n_tokens, forms, share) : once;
    for (const LinearOut& out : outputs) {
      const auto [begin, end] = share.of(out.linear.n_outputs(), kRowStep);
      if (begin < end)
        linear_rows(out.linear, begin, end, in, n_tokens, floats(out.y) + begin,
                    size_t(out.linear.n_outputs()), matmul_scratch(share));
    }
  });
}

void CpuOps::norm_gate(const NormWeights& n, const Linear& gate_, const Linear& up, const float* x,
                       int n_tokens, void* hidden_) {
  float* hidden = floats(hidden_);
  reserve(n_tokens);
  const bool few = n_tokens <= kFewTokens;
  const Forms forms{&gate_, &up};
  const Input once = few ? Input{} : input_once(n, x, n_tokens, forms);
  const size_t ffn_dim = size_t(gate_.n_outputs());
  parallel(n_threads_, [&](Share share) {
    const Input in = few ? input_here(n, x, n_tokens, forms, share) : once;
    const auto [begin, end] = share.of(gate_.n_outputs(), kRowStep);
    float* up_block = block_scratch(share);
    for (int r = begin; r < end; r += kBlockRows) {
      const int stop = std::min(r + kBlockRows, end);
      const size_t n_rows = size_t(stop - r);
      linear_rows(gate_, r, stop, in, n_tokens, hidden + r, ffn_dim, matmul_scratch(share));
      if (up) linear_rows(up, r, stop, in, n_tokens, up_block, n_rows, matmul_scratch(share));
      for (size_t t = 0; t < size_t(n_tokens); ++t) {
        float* h = hidden + t * ffn_dim + size_t(r);
        gate({config_.activation, h, up ? up_block + t * n_rows : nullptr, h, int(n_rows)});
      }
    }
  });
}

static void add_scaled(float* x, const float* y, float scale, size_t n) {
  for (size_t i = 0; i < n; ++i) x[i] += scale * y[i];
}

void CpuOps::linear_residual(const Linear& linear, const NormWeights& post_norm, const void* y_, int n_tokens,
                             float* x) {
  const float* y = floats(y_);
  reserve(n_tokens);
  const size_t dim = size_t(linear.n_outputs());
  const float scale = config_.residual_scale;
  const bool few = n_tokens <= kFewTokens;
  const Forms forms{&linear};
  const Input once = few ? Input{} : input_once({}, y, n_tokens, forms);
  if (!post_norm) {
    parallel(n_threads_, [&](Share share) {
      const Input in = few ? input_here({}, y, n_tokens, forms, share) : once;
      const auto [begin, end] = share.of(int(dim), kRowStep);
      float* block = block_scratch(share);
      for (int r = begin; r < end; r += kBlockRows) {
        const int stop = std::min(r + kBlockRows, end);
        const size_t n_rows = size_t(stop - r);
        linear_rows(linear, r, stop, in, n_tokens, block, n_rows, matmul_scratch(share));
        for (size_t t = 0; t < size_t(n_tokens); ++t)
          add_scaled(x + t * dim + size_t(r), block + t * n_rows, scale, n_rows);
      }
    });
    return;
  }
  // The norm needs whole rows: all of them first, then token by token.
  float* whole = whole_.floats();
  parallel(n_threads_, [&](Share share) {
    const Input in = few ? input_here({}, y, n_tokens, forms, share) : once;
    const auto [begin, end] = share.of(int(dim), kRowStep);
    if (begin < end) linear_rows(linear, begin, end, in, n_tokens, whole + begin, dim, matmul_scratch(share));
  });
  const auto norm_and_add = [&](Share share) {
    const auto [begin, end] = share.of(n_tokens);
    const size_t at = size_t(begin) * dim;
    apply_norm(post_norm, whole + at, end - begin, whole + at);
    add_scaled(x + at, whole + at, scale, size_t(end - begin) * dim);
  };
  parallel(n_tokens <= kSerialTokens ? 1 : n_threads_, norm_and_add);
}

void CpuOps::norm_logits(const Batch& batch, const NormWeights& n, const Linear& head, const float* x,
                         float* logits) {
  const int n_rows = int(batch.logit_rows.size());
  const size_t dim = size_t(head.n_inputs()), vocab_size = size_t(head.n_outputs());
  if (n_rows == 0) return;
  reserve(n_rows);
  float* rows = whole_.floats();
  for (int i = 0; i < n_rows; ++i)
    std::copy_n(x + size_t(batch.logit_rows[size_t(i)]) * dim, dim, rows + size_t(i) * dim);
  const Forms forms{&head};
  const Input in = shared_room_.input(n, rows, n_rows, forms);
  shared_room_.prepare(config_, n, rows, 0, n_rows, forms, in);
  const float scale = config_.logits_scale, softcap = config_.logits_softcap;
  const bool screens = batch.wanted && *batch.wanted && n_rows == 1 && head.w.packed.sliced() && !head.bias &&
                       scale > 0 && softcap == 0;
  if (screens) ++screened_.tokens;
  parallel(n_threads_, [&](Share share) {
    const auto [begin, end] = share.of(head.n_outputs(), kRowStep);
    if (begin == end) return;
    if (screens) {
      const Packed& w = head.w.packed;
      screen({w.rows(begin, end), begin, in.in_groups_of(w.group_size), *batch.wanted,
              batch.wanted->margin / double(scale), head_trust_, logits + begin,
              reinterpret_cast<int32_t*>(matmul_scratch(share))},
             screened_);
    } else {
      linear_rows(head, begin, end, in, n_rows, logits + begin, vocab_size, matmul_scratch(share));
    }
    if (scale == 1 && softcap == 0) return;
    for (size_t i = 0; i < size_t(n_rows); ++i)
      for (float* l = logits + i * vocab_size + size_t(begin); l != logits + i * vocab_size + size_t(end);
           ++l)
        *l = softcap > 0 ? softcap * std::tanh(*l * scale / softcap) : *l * scale;
  });
}

// ---- positions ----

void CpuOps::embed(const Batch& batch, const Matrix& table, float scale, const View& positions, float* x) {
  places_.choose(config_, batch);
  const size_t dim = size_t(config_.dim);
  if (batch.x) {
    std::copy_n(batch.x, batch.tokens.size() * dim, x);
    return;
  }
  std::vector<float> position(positions ? dim : 0);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    float* row = x + t * dim;
    if (table.packed) {
      unpack_row(table.packed, batch.tokens[t], row);
    } else {
      widen({table.floats.row(batch.tokens[t]), table.floats.dtype, row, dim});
    }
    if (scale != 1)
      for (size_t i = 0; i < dim; ++i) row[i] *= scale;
    if (positions) {
      widen({positions.row(places_.pos(t)), positions.dtype, position.data(), dim});
      for (size_t i = 0; i < dim; ++i) row[i] += position[i];
    }
  }
}

// ---- attention ----

void CpuOps::rope_store(const Batch& batch, int layer, const LayerWeights& w, void* q_, void* k_,
                        const void* v_) {
  float *q = floats(q_), *k = floats(k_);
  const float* v = floats(v_);
  const int rope_index = config_.layer_rope[size_t(layer)];
  const size_t q_floats = q_dim(config_), kv_floats = kv_dim(config_);
  const auto one_token = [&](size_t t) {
    float *qt = q + t * q_floats, *kt = k + t * kv_floats;
    if (w.q_norm) apply_norm(w.q_norm, qt, int(q_floats) / w.q_norm.dim, qt);
    if (w.k_norm) apply_norm(w.k_norm, kt, int(kv_floats) / w.k_norm.dim, kt);
    if (rope_index >= 0) {
      const size_t half = config_.ropes[size_t(rope_index)].inv_freq.size();
      const float *c = places_.cos(rope_index) + t * half, *s = places_.sin(rope_index) + t * half;
      rope({qt, c, s, config_.n_heads, config_.head_dim, int(2 * half)});
      rope({kt, c, s, config_.n_kv_heads, config_.head_dim, int(2 * half)});
    }
  };
  parallel(batch.n_tokens() <= kSerialTokens ? 1 : n_threads_, [&](Share share) {
    const auto [begin, end] = share.of(batch.n_tokens());
    for (int t = begin; t < end; ++t) one_token(size_t(t));
    for (const Segment& s : batch.segments)
      store(s, layer, std::max(s.begin, begin), std::min(s.begin + s.n_tokens, end), k, v);
  });
}

// Keys and values of a segment's tokens [begin, end), which count from the batch's first, block by block.
void CpuOps::store(const Segment& s, int layer, int begin, int end, const float* k, const float* v) const {
  for (int t = begin, n; t < end; t += n) {
    const int pos = s.pos + t - s.begin, slot = pos % kBlockTokens;
    n = std::min(kBlockTokens - slot, end - t);
    for (int head = 0; head < config_.n_kv_heads; ++head) {
      const size_t at = size_t(t) * kv_dim(config_) + size_t(head) * size_t(config_.head_dim);
      kv_store({k + at, v + at, kv_dim(config_), n, slot, s.cache->block(layer, head, pos),
                s.cache->pool().format()});
    }
  }
}

// Each is for tokens and query heads of one key-value head, at most kAttentionRows of both.
static std::vector<AttentionArgs> attention_calls(const Config& c, const Batch& batch, int layer,
                                                  const float* q, float* out) {
  const int group = c.n_heads / c.n_kv_heads;
  const int most_heads = std::min<int>(group, kAttentionRows), most_tokens = kAttentionRows / most_heads;
  std::vector<AttentionArgs> calls;
  for (const Segment& s : batch.segments) {
    const BlockPool& pool = s.cache->pool();
    for (int kv_head = 0; kv_head < c.n_kv_heads; ++kv_head)
      for (int head = kv_head * group, end = head + group; head < end; head += most_heads)
        for (int t = 0; t < s.n_tokens; t += most_tokens) {
          const size_t at = size_t(s.begin + t) * q_dim(c) + size_t(head) * size_t(c.head_dim);
          calls.push_back({q + at, out + at, q_dim(c), std::min(most_tokens, s.n_tokens - t),
                           std::min(most_heads, end - head), s.pos + t, s.cache->table(layer, kv_head),
                           pool.data(), pool.format(), c.layer_window[size_t(layer)], c.n_sinks,
                           c.attention_scale, c.attention_softcap, nullptr});
        }
  }
  return calls;
}

void CpuOps::attention(const Batch& batch, int layer, const void* q, void* out) {
  AttentionWork work(attend_, attention_calls(config_, batch, layer, floats(q), floats(out)), n_threads_);
  partials_.reserve(work.n_partial_floats() * sizeof(float));
  parallel(n_threads_, [&](Share share) { work.run(matmul_scratch(share), partials_.floats()); });
  for (const Segment& s : batch.segments)
    if (s.cache->masses()) observe(s, layer, floats(q));
}

// Counts what the last tokens of a pass look at, of passes of one token every few, in a cache that is to
// shrink.
void CpuOps::observe(const Segment& s, int layer, const float* q) {
  static constexpr int kObserved = 16, kEvery = 8;
  const int end = s.pos + s.n_tokens;
  if (s.n_tokens == 1 && s.pos % kEvery) return;
  const int n = std::min(kObserved, s.n_tokens), group = config_.n_heads / config_.n_kv_heads;
  const size_t n_floats = attention_mass_scratch(n * group, end, config_.head_dim);
  observed_.reserve(size_t(n_threads_) * n_floats * sizeof(float));
  parallel(n_threads_, [&](Share share) {
    const auto [begin, stop] = share.of(config_.n_kv_heads);
    for (int head = begin; head < stop; ++head) {
      const size_t at =
          size_t(s.begin + s.n_tokens - n) * q_dim(config_) + size_t(head * group) * size_t(config_.head_dim);
      attention_mass({q + at, q_dim(config_), n, group, end - n, s.cache->table(layer, head),
                      s.cache->pool().data(), s.cache->pool().format(), config_.layer_window[size_t(layer)],
                      config_.n_sinks, config_.attention_scale, config_.attention_softcap,
                      s.cache->mass(layer, head), observed_.floats() + size_t(share.thread) * n_floats});
    }
  });
}

}  // namespace russet
