// Wanted: which logits of a token its sampler can have a use for.
#pragma once
#include <cstdint>
#include <vector>

namespace russet {

// Those that are at least the k-th largest less `margin`, among the tokens that are allowed; and those of
// `ids`. In place of any other there may be -infinity.
struct Wanted {
  int k = 0;                      // 0: every logit
  double margin = 0;              // at least 0
  std::vector<int32_t> ids;       // ascending
  std::vector<uint32_t> allowed;  // a bit for each token, lowest first; none: every token may come

  explicit operator bool() const { return k > 0; }
  bool allows(int token) const {
    return allowed.empty() ||
           (size_t(token / 32) < allowed.size() && (allowed[size_t(token / 32)] >> token % 32 & 1));
  }
};

}  // namespace russet
