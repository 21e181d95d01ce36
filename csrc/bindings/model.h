// A model on the core's side, and one pass over it: what the bindings of every device share.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>

#include "bindings/arrays.h"
#include "core/check.h"
#include "kv_cache/kv_cache.h"
#include "model/forward.h"

namespace russet {

// Its numbers, its views, and the Python arrays that own what they view.
struct Model {
  Config config;
  Weights weights;
  std::vector<pybind11::object> owners;
};

// One sequence's part of a call: its cache, its next tokens, the length its rope is chosen for, and whether
// it wants logits of all its tokens or of the last alone.
using Part = std::tuple<KvCache*, std::vector<int32_t>, int, bool>;

// [n_tokens, dim] that a pass begins with where layers before the model's own were computed elsewhere.
using X = std::optional<Array<float>>;

// Called between the layers of a long pass; what it raises ends the pass, and the caches hold what they held.
using Interrupt = std::optional<std::function<void()>>;

// The same where it is due: it takes the GIL, for which a thread may have to wait for the others.
inline std::function<void()> now_and_then(const std::function<void()>& interrupt) {
  using Clock = std::chrono::steady_clock;
  return [&interrupt, last = Clock::now()]() mutable {
    if (Clock::now() - last < std::chrono::milliseconds(20)) return;
    interrupt();
    last = Clock::now();
  };
}

// Logits [n_rows, vocab_size]. Calls from several threads take turns at the lock. is_own(cache): whether the
// device reads it. wanted: of a single row, see Batch.
inline Array<float> forward_parts(const Model& model, const std::vector<Part>& parts, const X& x, Ops& ops,
                                  const std::function<bool(const KvCache&)>& is_own, std::mutex& lock,
                                  const Interrupt& interrupt = {}, const Wanted* wanted = nullptr) {
  check(!parts.empty(), ErrorKind::usage, "forward: a batch needs at least one sequence");
  std::vector<int32_t> tokens;
  std::vector<int> logit_rows;
  std::set<const KvCache*> caches;
  for (const auto& [cache, ids, rope_length, all_logits] : parts) {
    check(!ids.empty(), ErrorKind::usage, "forward: a sequence has no tokens");
    check(cache && cache->fits(model.config) && is_own(*cache), ErrorKind::usage,
          "forward: a cache was made for another model");
    check(caches.insert(cache).second, ErrorKind::usage, "forward: one cache appears twice in a batch");
    const int begin = int(tokens.size()), n = int(ids.size());
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    for (int t = all_logits ? 0 : n - 1; t < n; ++t) logit_rows.push_back(begin + t);
  }
  check(!x || (x->ndim() == 2 && x->shape(0) == pybind11::ssize_t(tokens.size()) &&
               x->shape(1) == model.config.dim),
        ErrorKind::usage, "forward: expected x [", tokens.size(), ", ", model.config.dim, "]");
  const float* x_rows = x ? x->data() : nullptr;
  Array<float> logits({logit_rows.size(), size_t(model.config.vocab_size)});
  float* out = logits.mutable_data();
  const pybind11::gil_scoped_release release;
  const std::lock_guard<std::mutex> turn(lock);
  // Where a cache stands is known only now: the call before this one may have been its too.
  std::vector<Segment> segments;
  int begin = 0;
  for (const auto& [cache, ids, rope_length, all_logits] : parts) {
    const int n = int(ids.size()), pos = cache->n_tokens();
    segments.push_back({cache, begin, n, pos, std::max(rope_length, pos + n)});
    begin += n;
  }
  forward(model.config, model.weights, ops, {tokens, segments, logit_rows, x_rows, wanted}, out,
          interrupt ? now_and_then(*interrupt) : nullptr);
  return logits;
}

}  // namespace russet
