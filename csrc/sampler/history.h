// History: the text so far, and what penalties and bans ask of it.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace russet {

class History {
 public:
  // Counts are of the last `window` tokens, 0: of all.
  History(std::span<const int32_t> prompt, int window);

  void append(int32_t token);  // one that was generated
  int n_generated() const { return int(text_.size() - n_prompt_); }
  bool ends_with(std::span<const int32_t> tokens) const;

  struct Count {
    int32_t token;
    int n_seen, n_generated;
  };
  std::span<const Count> counts() const { return counts_; }  // in order of token

  // The tokens that would make the last n tokens a run that the text has already; n from 1 on.
  std::span<const int32_t> ends_of_known_runs(int n);

  // A token that would go on as the text did before: its last `length` tokens stood in front of that token.
  struct Repeat {
    int32_t token;
    int length;
  };
  // Every such token, with its longest repeat, at least `shortest`. Only the last `window` tokens count (0:
  // all), and no repeat reaches back over one of the breakers, which are sorted.
  std::span<const Repeat> repeats(int shortest, int window, std::span<const int32_t> breakers);

 private:
  Count& count_of(int32_t token);

  size_t window_, n_prompt_;
  std::vector<int32_t> text_;
  std::vector<Count> counts_;
  std::vector<int> matches_;
  std::vector<Repeat> repeats_;
  std::vector<int32_t> ends_of_runs_;
};

}  // namespace russet
