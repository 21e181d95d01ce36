// numpy arrays as the core's views.
#pragma once
#include <pybind11/numpy.h>

#include <string>

#include "core/check.h"
#include "core/view.h"

namespace russet {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

inline DType dtype_of(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  if (name == "bf16") return DType::bf16;
  fail(ErrorKind::weights, "dtype: expected f32, f16 or bf16, got '", name, "'");
}

// (array [n_rows, n_cols], dtype name) -> view; the array itself must be C-contiguous, its address need not
// be aligned.
inline View view_of(const pybind11::handle& tensor) {
  const auto pair = pybind11::cast<pybind11::tuple>(tensor);
  const auto array = pybind11::cast<pybind11::array>(pair[0]);
  const DType dtype = dtype_of(pybind11::cast<std::string>(pair[1]));
  check(array.ndim() == 2 && (array.flags() & pybind11::array::c_style) &&
            size_t(array.itemsize()) == size_of(dtype),
        ErrorKind::weights, "a matrix must be a contiguous [n_rows, n_cols] array of ", size_of(dtype),
        "-byte items");
  check(array.shape(0) <= INT32_MAX && array.shape(1) <= INT32_MAX, ErrorKind::weights,
        "a matrix is too large");
  return {array.data(), dtype, int(array.shape(0)), int(array.shape(1))};
}

}  // namespace russet
