#include "backends/cpu/input.h"

#include <algorithm>

#include "kernels/quantize/quantize.h"

namespace russet {

static constexpr size_t kPage = 4096;

static size_t pages(size_t n_bytes) {
  return (n_bytes + kPage - 1) / kPage * kPage;
}

// Floats first, then each form: codes, scales, sums, the last two with room for the smallest groups.
static size_t float_bytes(size_t n_tokens, size_t n_cols) {
  return pages(n_tokens * n_cols * sizeof(float));
}
static size_t form_bytes(size_t n_tokens, size_t n_cols) {
  const size_t n_groups = n_cols / size_t(kGroupSizes[0]) + 1;
  return pages(n_tokens * (n_cols + n_groups * (sizeof(float) + sizeof(int32_t))) + 64);
}

void InputRoom::reserve(int n_tokens, int n_cols) {
  n_tokens_ = std::max(n_tokens_, size_t(n_tokens));
  n_cols_ = std::max(n_cols_, (size_t(n_cols) + 15) / 16 * 16);
  memory_.reserve(float_bytes(n_tokens_, n_cols_) + std::size(kGroupSizes) * form_bytes(n_tokens_, n_cols_));
}

Input InputRoom::input(const NormWeights& norm, const float* x, int n_tokens, const Forms& forms) const {
  Input input;
  input.x = norm ? memory_.floats() : x;
  const size_t n = size_t(n_tokens), n_cols = size_t(forms.n_cols);
  for (size_t i = 0; i < std::size(kGroupSizes); ++i) {
    if (!forms.in_groups[i]) continue;
    char* at = memory_.bytes() + float_bytes(n_tokens_, n_cols_) + i * form_bytes(n_tokens_, n_cols_);
    auto* scales = reinterpret_cast<float*>(at + (n * n_cols + 63) / 64 * 64);
    auto* sums = reinterpret_cast<int32_t*>(scales + n * (n_cols / size_t(kGroupSizes[i])));
    input.quantized[i] = {reinterpret_cast<int8_t*>(at), scales, sums};
  }
  return input;
}

void InputRoom::prepare(const Config& config, const NormWeights& n, const float* x, int begin, int end,
                        const Forms& forms, const Input& input) const {
  const int n_cols = forms.n_cols;
  for (int t = begin; t < end; ++t) {
    const size_t at = size_t(t) * size_t(n_cols);
    if (n) norm({config.norm, x + at, n.w, n.bias, config.norm_eps, memory_.floats() + at, 1, n.dim});
    for (size_t i = 0; i < std::size(kGroupSizes); ++i) {
      if (!forms.in_groups[i]) continue;
      const QuantizedX& q = input.quantized[i];
      const size_t group = size_t(t) * size_t(n_cols / kGroupSizes[i]);
      quantize({input.x + at, const_cast<int8_t*>(q.codes) + at, const_cast<float*>(q.scales) + group,
                const_cast<int32_t*>(q.sums) + group, 1, n_cols, kGroupSizes[i]});
    }
  }
}

}  // namespace russet
