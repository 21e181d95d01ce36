#include "backends/cpu/screen.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/scale_sums/scale_sums.h"
#include "kernels/slice_dot/slice_dot.h"

namespace russet {
namespace {

constexpr float kOut = -std::numeric_limits<float>::infinity();

// After so many estimates in vain, one after the other, only every kRetry-th band has one.
constexpr int kInVain = 8, kRetry = 16;

// What is to be taken off each q of which so many slices were summed: 128, less the middle of what is
// missing.
constexpr int kCenters[kSlices + 1] = {128, 120, 126, 128};

// Under what no logit is wanted: the k-th largest so far, less the margin.
class Floor {
 public:
  Floor(int k, double margin) : k_(size_t(k)), margin_(margin) { largest_.reserve(k_); }

  // A NaN is below nothing and above nothing: it is no logit to go by, and stays in the row for all to see.
  void add(float logit) {
    if (std::isnan(logit)) return;
    if (largest_.size() == k_) {
      if (logit <= largest_.front()) return;
      std::pop_heap(largest_.begin(), largest_.end(), std::greater<>());
      largest_.back() = logit;
    } else {
      largest_.push_back(logit);
    }
    std::push_heap(largest_.begin(), largest_.end(), std::greater<>());
    if (largest_.size() < k_) return;
    const double least = largest_.front();
    value_ = least - margin_ - std::abs(least) * kRounding;
  }
  double value() const { return value_; }

 private:
  // What a sampler does to all logits alike, scaling them, may make equal what is less apart than this.
  static constexpr double kRounding = 0x1p-20;

  size_t k_;
  double margin_;
  std::vector<float> largest_;  // a heap, the least of them in front
  double value_ = -std::numeric_limits<double>::infinity();
};

double length_of(const QuantizedX& x, int n_cols, int group_size) {
  double squares = 0;
  for (int g = 0; g < n_cols / group_size; ++g) {
    int64_t of_group = 0;
    for (int c = g * group_size; c < (g + 1) * group_size; ++c) of_group += x.codes[c] * x.codes[c];
    squares += double(x.scales[g]) * double(x.scales[g]) * double(of_group);
  }
  return std::sqrt(squares) * (1 + 1e-12);
}

// A band's rows that may be in the answer.
struct Rows {
  int n;
  bool allowed[kBandRows];
  bool any;     // are allowed
  bool needed;  // one of them, whatever its logit is
};

class Screen {
 public:
  explicit Screen(const ScreenArgs& args)
      : a_(args),
        w_(args.head),
        length_(args.trust * length_of(args.x, w_.n_cols, w_.group_size)),
        floor_(args.wanted.k, args.margin),
        id_(std::lower_bound(args.wanted.ids.begin(), args.wanted.ids.end(), args.first)) {}

  void run(ScreenCounts& counts) {
    for (int b = 0; b < w_.n_bands(); ++b) {
      const Rows rows = rows_of(b);
      float* logits = a_.logits + b * kBandRows;
      if (compute(b, rows)) {
        std::copy_n(y_, rows.n, logits);
        for (int r = 0; r < rows.n; ++r)
          if (rows.allowed[r]) floor_.add(y_[r]);
        n_rows_ += size_t(rows.n);
      } else {
        std::fill_n(logits, rows.n, kOut);
      }
    }
    counts.bytes += n_bytes_;
    counts.rows += n_rows_;
  }

 private:
  Rows rows_of(int b) {
    Rows rows{std::min(kBandRows, w_.n_rows - b * kBandRows), {}, false, false};
    const int first = a_.first + b * kBandRows;
    for (int r = 0; r < rows.n; ++r) rows.any |= rows.allowed[r] = a_.wanted.allows(first + r);
    for (; id_ != a_.wanted.ids.end() && *id_ < first + rows.n; ++id_) rows.needed = true;
    return rows;
  }

  // Slice by slice, until none of the rows can matter: false; or to the end: true, and y_ is exact.
  bool compute(int b, const Rows& rows) {
    if (!rows.any && !rows.needed) return false;
    std::fill_n(a_.sums, w_.band_scales(), 0);
    n_bytes_ += w_.band_scales() * size_of(w_.dtype) * (w_.biases ? 2 : 1);
    for (int n = 1; n <= kSlices; ++n) {
      slice_dot({w_.slice(n - 1, b), n - 1, w_.n_cols, w_.group_size, a_.x.codes, a_.sums});
      n_bytes_ += w_.slice_bytes(n - 1);
      if (n == kSlices || rows.needed || (in_vain_[n] >= kInVain && b % kRetry)) continue;
      estimate(b, n);
      n_bytes_ += kBandRows * sizeof(float);
      if (!may_matter(b, n, rows)) {
        in_vain_[n] = 0;
        return false;
      }
      ++in_vain_[n];
    }
    estimate(b, kSlices);
    return true;
  }

  void estimate(int b, int n_slices) {
    scale_sums({w_.rows(b * kBandRows, w_.n_rows), a_.sums, kCenters[n_slices], a_.x, y_});
  }

  bool may_matter(int b, int n_slices, const Rows& rows) const {
    const float* radii = w_.radii_of(b, n_slices);
    bool any = false;  // and so does NaN, for the sampler to find
    for (int r = 0; r < rows.n; ++r)
      any |= rows.allowed[r] && !(double(y_[r]) + double(radii[r]) * length_ < floor_.value());
    return any;
  }

  const ScreenArgs& a_;
  const Packed& w_;
  const double length_;  // of x, times trust
  Floor floor_;
  std::vector<int32_t>::const_iterator id_;  // the next of wanted.ids
  int in_vain_[kSlices] = {};                // [n]: estimates by n slices that ruled nothing out, in a row
  size_t n_bytes_ = 0, n_rows_ = 0;
  float y_[kBandRows];
};

}  // namespace

void sliced_product(const Packed& w, const QuantizedX& x, float* y, int32_t* sums) {
  for (int b = 0; b < w.n_bands(); ++b) {
    std::fill_n(sums, w.band_scales(), 0);
    for (int i = 0; i < kSlices; ++i) slice_dot({w.slice(i, b), i, w.n_cols, w.group_size, x.codes, sums});
    float of_band[kBandRows];
    scale_sums({w.rows(b * kBandRows, w.n_rows), sums, kCenters[kSlices], x, of_band});
    std::copy_n(of_band, std::min(kBandRows, w.n_rows - b * kBandRows), y + b * kBandRows);
  }
}

void screen(const ScreenArgs& args, ScreenCounts& counts) {
  Screen(args).run(counts);
}

}  // namespace russet
