// View: a matrix somebody else owns. Weights are views into the mapped checkpoint, in the type they are
// stored in.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/float16.h"

namespace russet {

enum class DType : uint8_t { f32, f16, bf16 };

inline size_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}
inline const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "f32" : dtype == DType::f16 ? "f16" : "bf16";
}

struct View {
  const void* data = nullptr;  // null: the model has no such weight
  DType dtype = DType::f32;
  int n_rows = 0, n_cols = 0;  // row-major, rows adjacent

  explicit operator bool() const { return data != nullptr; }
  size_t row_bytes() const { return size_t(n_cols) * size_of(dtype); }
  size_t bytes() const { return size_t(n_rows) * row_bytes(); }
  const void* row(int r) const { return static_cast<const char*>(data) + size_t(r) * row_bytes(); }
  View rows(int begin, int end) const { return {row(begin), dtype, end - begin, n_cols}; }
};

// Calls f with a null pointer of the element type, so that one template serves the three types.
template <typename F>
decltype(auto) with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f16:
      return f(static_cast<const f16*>(nullptr));
    case DType::bf16:
      return f(static_cast<const bf16*>(nullptr));
    default:
      return f(static_cast<const float*>(nullptr));
  }
}

}  // namespace russet
