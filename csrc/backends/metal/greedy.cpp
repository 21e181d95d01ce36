#include "backends/metal/greedy.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "kv_cache/kv_cache.h"
#include "model/forward.h"

namespace russet::metal {

int32_t Greedy::next(const Config& config, const Weights& weights, MetalOps& ops, KvCache& cache,
                     int32_t token, int rope_length) {
  const auto begin = [&](const int32_t* on_device) {
    const int pos = cache.n_tokens(), first_row = 0;
    const Segment segment{&cache, 0, 1, pos, std::max(rope_length, pos + 1)};
    return ops.forward_likeliest(weights, {{&token, 1}, {&segment, 1}, {&first_row, 1}}, on_device);
  };
  // Where other sequences' passes have come between, the next would too: they have taken the place of what
  // was computed ahead, so nothing is.
  const bool alone = ops.last_pass() == last_pass_;
  MetalOps::Likeliest asked = std::exchange(ahead_, {});
  if (asked.pass && alone && pos_ == cache.n_tokens() && token_ == token)
    cache.append(1);
  else
    asked = begin(nullptr);

  pos_ = cache.n_tokens();
  MetalOps::Likeliest ahead;
  if (alone && pos_ < std::min(cache.n_ctx(), config.max_ctx)) {
    try {
      ahead = begin(asked.token);
      cache.truncate(pos_);  // it will count when it is asked for
    } catch (const Error& error) {
      if (error.kind != ErrorKind::memory) throw;  // no room for it: that is said when it is asked for
    }
  }
  last_pass_ = ops.last_pass();
  token_ = ops.wait(asked);
  ahead_ = ahead;
  return token_;
}

}  // namespace russet::metal
