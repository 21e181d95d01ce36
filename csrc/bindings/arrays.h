// numpy arrays as the core's views.
#pragma once
#include <pybind11/numpy.h>

#include <memory>
#include <string>

#include "core/check.h"
#include "core/view.h"
#include "kernels/attention/attention_int8.h"
#include "kv_cache/kv_format.h"
#include "weights/arena.h"
#include "weights/weights.h"

namespace russet {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

inline DType dtype_of(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  if (name == "bf16") return DType::bf16;
  fail(ErrorKind::weights, "dtype: expected f32, f16 or bf16, got '", name, "'");
}

inline KvType kv_type_of(const std::string& name) {
  if (name == "int8") return KvType::int8;
  if (name == "int4") return KvType::int4;
  return kv_type(dtype_of(name));
}

inline AttentionKind attention_kind_of(const std::string& name) {
  if (name == "exact") return AttentionKind::exact;
  if (name == "sage") return AttentionKind::sage;
  if (name == "int8") return AttentionKind::integer;
  fail(ErrorKind::usage, "attention: expected exact, sage or int8, got '", name, "'");
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

// A packed matrix in Python's hands, and the memory it lies in: an Arena, or an array.
struct PackedMatrix {
  pybind11::object memory;
  const char* begin;  // of that memory
  Packed view;

  size_t offset() const { return size_t(reinterpret_cast<const char*>(view.codes) - begin); }
  size_t n_bytes() const {
    return packed_bytes(view.n_rows, view.n_cols, view.bits, view.group_size, view.dtype, !view.biases,
                        view.sliced());
  }
};

inline void check_groups(int bits, int group_size) {
  check((bits == 4 || bits == 8) && (group_size == 32 || group_size == 64 || group_size == 128),
        ErrorKind::weights, "affine groups: expected 4 or 8 bits in groups of 32, 64 or 128, got ", bits,
        " in groups of ", group_size);
}

// MLX's arrays -> view: codes uint32 [n_rows, n_cols * bits / 32], scales and biases [n_rows, n_groups] of
// dtype.
inline Affine affine_of(const pybind11::array& codes, const pybind11::array& scales,
                        const pybind11::array& biases, const std::string& dtype, int bits, int group_size) {
  check_groups(bits, group_size);
  const auto is = [](const pybind11::array& a, size_t size) {
    return a.ndim() == 2 && (a.flags() & pybind11::array::c_style) && size_t(a.itemsize()) == size;
  };
  const DType type = dtype_of(dtype);
  check(is(codes, 4) && is(scales, size_of(type)) && is(biases, size_of(type)), ErrorKind::weights,
        "affine groups: expected contiguous matrices: codes of uint32, scales and biases of ", dtype);
  const pybind11::ssize_t n_cols = codes.shape(1) * 32 / bits, n_groups = n_cols / group_size;
  check(codes.shape(0) >= 1 && codes.shape(0) <= INT32_MAX && n_cols >= 1 && n_cols <= INT32_MAX / 2 &&
            n_cols % group_size == 0 && scales.shape(0) == codes.shape(0) && scales.shape(1) == n_groups &&
            biases.shape(0) == codes.shape(0) && biases.shape(1) == n_groups,
        ErrorKind::weights, "affine groups: codes [", codes.shape(0), ", ", codes.shape(1), "], scales [",
        scales.shape(0), ", ", scales.shape(1), "] and biases [", biases.shape(0), ", ", biases.shape(1),
        "] disagree at ", bits, " bits in groups of ", group_size);
  return {static_cast<const uint8_t*>(codes.data()),
          scales.data(),
          biases.data(),
          type,
          int(codes.shape(0)),
          int(n_cols),
          bits,
          group_size};
}

// MLX's arrays as they are, and what keeps them.
struct AffineMatrix {
  pybind11::array codes, scales, biases;
  Affine view;
};

// A matrix in one of its forms: (array, dtype name), a PackedMatrix or an AffineMatrix.
inline Matrix matrix_of(const pybind11::handle& tensor) {
  if (pybind11::isinstance<PackedMatrix>(tensor)) return {.packed = tensor.cast<const PackedMatrix&>().view};
  if (pybind11::isinstance<AffineMatrix>(tensor)) return {.affine = tensor.cast<const AffineMatrix&>().view};
  return {.floats = view_of(tensor)};
}

}  // namespace russet
