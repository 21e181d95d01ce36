#include "sampler/history.h"

#include <algorithm>

namespace russet {

History::History(std::span<const int32_t> prompt, int window)
    : window_(size_t(window)), n_prompt_(prompt.size()), text_(prompt.begin(), prompt.end()) {
  const size_t n = window_ > 0 ? std::min(window_, n_prompt_) : n_prompt_;
  std::vector<int32_t> seen(text_.end() - std::ptrdiff_t(n), text_.end());
  std::sort(seen.begin(), seen.end());
  for (const int32_t token : seen) {
    if (counts_.empty() || counts_.back().token != token) counts_.push_back({token, 0, 0});
    ++counts_.back().n_seen;
  }
}

void History::append(int32_t token) {
  text_.push_back(token);
  Count& count = count_of(token);
  ++count.n_seen;
  ++count.n_generated;
  if (window_ == 0 || text_.size() <= window_) return;
  const size_t leaving = text_.size() - window_ - 1;
  Count& old = count_of(text_[leaving]);
  --old.n_seen;
  old.n_generated -= leaving >= n_prompt_;
  if (old.n_seen == 0) counts_.erase(counts_.begin() + (&old - counts_.data()));
}

History::Count& History::count_of(int32_t token) {
  const auto before = [](const Count& count, int32_t t) { return count.token < t; };
  auto found = std::lower_bound(counts_.begin(), counts_.end(), token, before);
  if (found == counts_.end() || found->token != token) found = counts_.insert(found, {token, 0, 0});
  return *found;
}

bool History::ends_with(std::span<const int32_t> tokens) const {
  return tokens.size() <= text_.size() && std::equal(tokens.rbegin(), tokens.rend(), text_.rbegin());
}

std::span<const int32_t> History::ends_of_known_runs(int n) {
  ends_of_runs_.clear();
  const auto n_before = std::ptrdiff_t(n) - 1;
  if (n_before >= std::ptrdiff_t(text_.size())) return ends_of_runs_;
  const auto last = text_.end() - n_before;
  for (auto begin = text_.begin(); begin != last; ++begin)
    if (std::equal(last, text_.end(), begin)) ends_of_runs_.push_back(*(begin + n_before));
  return ends_of_runs_;
}

std::span<const History::Repeat> History::repeats(int shortest, int window,
                                                  std::span<const int32_t> breakers) {
  const int n = window > 0 ? std::min(window, int(text_.size())) : int(text_.size());
  const auto from_end = [&](int i) { return text_[text_.size() - 1 - size_t(i)]; };
  repeats_.clear();
  int longest = 0;  // tokens after the last breaker
  while (longest < n && !std::binary_search(breakers.begin(), breakers.end(), from_end(longest))) ++longest;
  if (longest < shortest) return repeats_;

  // matches_[i]: how many tokens that end i before the last equal those that end with the last. Each is begun
  // with what the match that reaches back furthest says of it (the Z-algorithm), so that all take n steps.
  matches_.assign(size_t(n), 0);
  int begin = 0, end = 0;  // of that match, from the end
  for (int i = 1; i < n; ++i) {
    int length = i < end ? std::min(end - i, matches_[size_t(i - begin)]) : 0;
    while (i + length < n && from_end(length) == from_end(i + length)) ++length;
    matches_[size_t(i)] = length;
    if (i + length > end) begin = i, end = i + length;
    if (std::min(length, longest) >= shortest)
      repeats_.push_back({from_end(i - 1), std::min(length, longest)});
  }
  std::sort(repeats_.begin(), repeats_.end(), [](const Repeat& a, const Repeat& b) {
    return a.token < b.token || (a.token == b.token && a.length > b.length);
  });
  const auto same = [](const Repeat& a, const Repeat& b) { return a.token == b.token; };
  repeats_.erase(std::unique(repeats_.begin(), repeats_.end(), same), repeats_.end());
  return repeats_;
}

}  // namespace russet
