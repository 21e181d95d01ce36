// The Python module russet._core: the only file, with kernels.cpp beside it, that knows Python. The GIL is
// released around everything that computes.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cpu/cpu_ops.h"
#include "bindings/arrays.h"
#include "bindings/model.h"
#include "core/check.h"
#include "core/cpu.h"
#include "core/machine.h"
#include "core/parallel.h"
#include "kernels/matmul/matmul.h"
#include "kernels/qmatmul/crossover.h"
#include "kv_cache/kv_cache.h"
#include "model/places.h"
#include "weights/affine.h"
#include "weights/arena.h"

namespace py = pybind11;
using namespace russet;

void bind_kernels(py::module_& m);
void bind_kv_cache(py::module_& m);
void bind_metal(py::module_& m);
void bind_sampler(py::module_& m);

namespace {

void raise_in_python(const Error& e) {
  static constexpr const char* kClasses[] = {"UsageError",      "WeightsError",   "ContextFull",
                                             "NotEnoughMemory", "NumericalError", "BackendError"};
  const py::object error = py::module_::import("russet.errors").attr(kClasses[size_t(e.kind)]);
  PyErr_SetString(error.ptr(), e.what());
}

const float* vector_of(const py::handle& data, int* dim) {
  check(py::isinstance<Array<float>>(data), ErrorKind::weights,
        "a vector must be a contiguous array of float32");
  const auto array = py::cast<Array<float>>(data);
  *dim = int(array.size());
  return array.data();
}

py::object array_of(const py::handle& tensor) {
  return py::cast<py::tuple>(tensor)[0];
}

// "layers.3.q.w" -> the view it names
void set_weight(Weights& weights, const std::string& role, const py::handle& tensor) {
  const size_t dot = role.rfind('.');
  std::string name = role.substr(0, dot);
  const bool is_bias = role.substr(dot + 1) == "bias";
  LayerWeights* layer = nullptr;
  if (name.rfind("layers.", 0) == 0) {
    const size_t end = name.find('.', 7);
    layer = &weights.layers.at(std::stoul(name.substr(7, end - 7)));
    name = name.substr(end + 1);
  }

  const auto set_norm = [&](NormWeights& norm) {
    int dim = 0;
    (is_bias ? norm.bias : norm.w) = vector_of(array_of(tensor), &dim);
    check(norm.dim == 0 || norm.dim == dim, ErrorKind::weights, role, ": expected [", norm.dim, "], got [",
          dim, "]");
    norm.dim = dim;
  };
  const auto set_linear = [&](Linear& linear) {
    if (!is_bias) {
      linear.w = matrix_of(tensor);
      return;
    }
    int dim = 0;
    linear.bias = vector_of(array_of(tensor), &dim);
    check(!linear.w || linear.n_outputs() == dim, ErrorKind::weights, role, ": expected [",
          linear.n_outputs(), "], got [", dim, "]");
  };

  if (layer) {
    const std::pair<const char*, NormWeights LayerWeights::*> norms[] = {
        {"attn_norm", &LayerWeights::attn_norm}, {"attn_post_norm", &LayerWeights::attn_post_norm},
        {"q_norm", &LayerWeights::q_norm},       {"k_norm", &LayerWeights::k_norm},
        {"ffn_norm", &LayerWeights::ffn_norm},   {"ffn_post_norm", &LayerWeights::ffn_post_norm}};
    const std::pair<const char*, Linear LayerWeights::*> linears[] = {
        {"q", &LayerWeights::q},      {"k", &LayerWeights::k},       {"v", &LayerWeights::v},
        {"o", &LayerWeights::o},      {"gate", &LayerWeights::gate}, {"up", &LayerWeights::up},
        {"down", &LayerWeights::down}};
    for (const auto& [n, member] : norms)
      if (name == n) return set_norm(layer->*member);
    for (const auto& [n, member] : linears)
      if (name == n) return set_linear(layer->*member);
  } else {
    if (name == "embed") return void(weights.embed = matrix_of(tensor));
    if (name == "positions") return void(weights.positions = view_of(tensor));
    if (name == "head") return set_linear(weights.head);
    if (name == "final_norm") return set_norm(weights.final_norm);
  }
  fail(ErrorKind::weights, "no weight has the role '", role, "'");
}

void check_slices(int bits, int n_cols, bool sliced) {
  check(!sliced || (bits == 8 && n_cols <= kMaxSlicedCols), ErrorKind::weights,
        "packed matrix: only one of 8 bits and at most ", int(kMaxSlicedCols), " columns can be sliced");
}

// Packs MLX's arrays into the arena.
PackedMatrix make_packed(const std::shared_ptr<Arena>& arena, const py::array& codes, const py::array& scales,
                         const py::array& biases, const std::string& dtype, int bits, int group_size,
                         int n_threads, bool sliced) {
  const Affine affine = affine_of(codes, scales, biases, dtype, bits, group_size);
  check_slices(bits, affine.n_cols, sliced);
  const auto packed = [&] {
    const py::gil_scoped_release release;
    const bool symmetric = is_symmetric(affine);
    char* memory = arena->take(
        packed_bytes(affine.n_rows, affine.n_cols, bits, group_size, affine.dtype, symmetric, sliced));
    return pack(affine, symmetric, memory, n_threads, sliced);
  };
  return {py::cast(arena), arena->bytes(), packed()};
}

// An arena filled with n_bytes of an open file from `offset` on, by several threads.
std::shared_ptr<Arena> arena_from_file(int file, size_t offset, size_t n_bytes, int n_threads) {
  const py::gil_scoped_release release;
  auto arena = std::make_shared<Arena>(n_bytes + 64);
  char* to = arena->take(n_bytes);
  parallel(n_threads, [&](Share share) {
    const size_t part = n_bytes / size_t(share.n_threads);
    size_t at = part * size_t(share.thread);
    const size_t end = share.thread + 1 == share.n_threads ? n_bytes : at + part;
    while (at < end) {
      const ssize_t n = pread(file, to + at, end - at, off_t(offset + at));
      check(n > 0 || (n < 0 && errno == EINTR), ErrorKind::weights, "expected ", n_bytes,
            " bytes of packed weights, the file ends or fails after ", at);
      if (n > 0) at += size_t(n);
    }
  });
  return arena;
}

// A copy of the array that lies in the arena.
py::array keep_in(const std::shared_ptr<Arena>& arena, const py::array& array) {
  check(array.flags() & py::array::c_style, ErrorKind::usage, "arena: expected a contiguous array");
  char* memory = arena->take(size_t(array.nbytes()));
  std::memcpy(memory, array.data(), size_t(array.nbytes()));
  const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
  py::array kept(array.dtype(), shape, memory, py::cast(arena));
  kept.attr("flags").attr("writeable") = false;
  return kept;
}

// One that lies in `memory` at `offset`, as it lay in its arena.
PackedMatrix packed_in(const py::array& memory, size_t offset, int n_rows, int n_cols, int bits,
                       int group_size, const std::string& dtype, bool symmetric, bool sliced) {
  check_groups(bits, group_size);
  check_slices(bits, n_cols, sliced);
  check(memory.ndim() == 1 && memory.itemsize() == 1 && (memory.flags() & py::array::c_style),
        ErrorKind::weights, "packed matrix: expected a contiguous array of bytes");
  check(n_rows >= 1 && n_rows <= INT32_MAX - kBandRows && n_cols >= 1 && n_cols % group_size == 0,
        ErrorKind::weights, "packed matrix: ", n_rows, " x ", n_cols, " is no matrix in groups of ",
        group_size);
  const size_t n_bytes = packed_bytes(n_rows, n_cols, bits, group_size, dtype_of(dtype), symmetric, sliced);
  const auto* begin = static_cast<const char*>(memory.data());
  check(offset <= size_t(memory.size()) && n_bytes <= size_t(memory.size()) - offset, ErrorKind::weights,
        "packed matrix: ", n_bytes, " bytes at ", offset, " go beyond the end, ", memory.size());
  check(reinterpret_cast<uintptr_t>(begin + offset) % 64 == 0, ErrorKind::weights,
        "packed matrix: expected an address that is a multiple of 64");
  return {memory, begin,
          packed_at(begin + offset, n_rows, n_cols, bits, group_size, dtype_of(dtype), symmetric, sliced)};
}

// Floats to MLX's arrays: codes uint32, scales and biases of the floats' dtype (bf16 as uint16).
py::tuple make_affine(const py::object& w, const std::string& dtype, int bits, int group_size, bool symmetric,
                      int n_threads) {
  const View view = view_of(py::make_tuple(w, dtype));
  check_groups(bits, group_size);
  check(view.n_rows >= 1 && view.n_cols >= 1 && view.n_cols % group_size == 0, ErrorKind::weights,
        "affine groups: expected columns in groups of ", group_size, ", got ", view.n_cols);
  const py::ssize_t n_words = py::ssize_t(view.n_cols) * bits / 32, n_groups = view.n_cols / group_size;
  const py::dtype scale_type(view.dtype == DType::f32 ? "f4" : view.dtype == DType::f16 ? "f2" : "u2");
  py::array_t<uint32_t> codes({py::ssize_t(view.n_rows), n_words});
  py::array scales(scale_type, {py::ssize_t(view.n_rows), n_groups});
  py::array biases(scale_type, {py::ssize_t(view.n_rows), n_groups});
  {
    uint32_t* words = codes.mutable_data();
    void *scale_data = scales.mutable_data(), *bias_data = biases.mutable_data();
    const py::gil_scoped_release release;
    to_affine(view, bits, group_size, symmetric, words, scale_data, bias_data, n_threads);
  }
  return py::make_tuple(codes, scales, biases);
}

// What affine groups have lost of the floats: max |w - v|, then sums of (w - v)^2, w^2, v^2 and w v.
py::tuple errors_of(const py::object& w, const std::string& dtype, const py::array& codes,
                    const py::array& scales, const py::array& biases, int bits, int group_size,
                    int n_threads) {
  const View view = view_of(py::make_tuple(w, dtype));
  const Affine affine = affine_of(codes, scales, biases, dtype, bits, group_size);
  check(view.n_rows == affine.n_rows && view.n_cols == affine.n_cols, ErrorKind::weights,
        "affine groups: expected floats of the same shape");
  AffineErrors e;
  {
    const py::gil_scoped_release release;
    e = affine_errors(view, affine, n_threads);
  }
  return py::make_tuple(e.max_error, e.errors, e.ww, e.vv, e.wv);
}

// tensors: role -> (array, dtype) or PackedMatrix. Matrices in f32, f16 or bf16 (as uint16), vectors in f32.
// A head that is not there is the embedding. Weights come before their biases, as a dict keeps its order.
Model make_model(const Config& config, const py::dict& tensors) {
  Model model{config, {}, {}};
  model.weights.layers.resize(size_t(config.n_layers));
  for (const auto& [role, tensor] : tensors) {
    set_weight(model.weights, py::cast<std::string>(role), tensor);
    model.owners.push_back(py::reinterpret_borrow<py::object>(tensor));
  }
  if (!model.weights.head) model.weights.head.w = model.weights.embed;
  check_weights(model.config, model.weights);
  return model;
}

// Of every rope, cosines and sines [n_tokens, rotary_dim / 2] of consecutive positions from `pos` on, for a
// backend that is not in the core.
py::list rope_tables(const Config& config, int pos, int n_tokens, int rope_length) {
  check(pos >= 0 && n_tokens >= 1, ErrorKind::usage, "rope_tables: expected at least one position from 0 on");
  const std::vector<int32_t> tokens(static_cast<size_t>(n_tokens));
  const Segment segment{nullptr, 0, n_tokens, pos, std::max(rope_length, pos + n_tokens)};
  Places places;
  places.choose(config, {tokens, {&segment, 1}, {}});
  py::list tables;
  for (size_t r = 0; r < config.ropes.size(); ++r) {
    const std::vector<size_t> shape{size_t(n_tokens), config.ropes[r].inv_freq.size()};
    tables.append(
        py::make_tuple(Array<float>(shape, places.cos(int(r))), Array<float>(shape, places.sin(int(r)))));
  }
  return tables;
}

// The CPU backend: operations and the buffers they work in. Calls from several threads take turns.
struct Cpu {
  Cpu(const Config& c, int n_threads, int n_prefill_threads, const std::string& attention, double head_trust)
      : config(c),
        ops(config, n_threads, n_prefill_threads > 0 ? n_prefill_threads : n_threads,
            attention_kind_of(attention), head_trust) {}

  Array<float> forward(const Model& model, const std::vector<Part>& parts, const X& x,
                       const Interrupt& interrupt, const Wanted* wanted) {
    check(model.config == config, ErrorKind::usage,
          "forward: the model is not the one this backend was made for");
    const auto is_own = [](const KvCache& cache) { return cache.pool().format().keys_by_columns; };
    return forward_parts(model, parts, x, ops, is_own, lock, interrupt, wanted);
  }

  // The fused operations alone, for tests and benchmarks.
  Array<float> norm_linear(const py::object& norm_w, const py::object& norm_bias, const py::object& w,
                           const Array<float>& x) {
    const Linear linear{matrix_of(w)};
    const NormWeights norm = norm_of(norm_w, norm_bias);
    check_product(x, norm, linear);
    Array<float> y({x.shape(0), py::ssize_t(linear.n_outputs())});
    float* out = y.mutable_data();
    const float* in = x.data();
    const int n_tokens = int(x.shape(0));
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> turn(lock);
    ops.norm_linear(norm, in, n_tokens, {{linear, out}});
    return y;
  }

  Array<float> norm_gate(const py::object& norm_w, const py::object& norm_bias, const py::object& gate,
                         const py::object& up, const Array<float>& x) {
    const Linear gate_linear{matrix_of(gate)};
    const Linear up_linear = up.is_none() ? Linear{} : Linear{matrix_of(up)};
    const NormWeights norm = norm_of(norm_w, norm_bias);
    check_product(x, norm, gate_linear);
    check(!up_linear || (up_linear.n_outputs() == gate_linear.n_outputs() &&
                         up_linear.n_inputs() == gate_linear.n_inputs()),
          ErrorKind::usage, "norm_gate: gate and up differ in shape");
    Array<float> y({x.shape(0), py::ssize_t(gate_linear.n_outputs())});
    float* out = y.mutable_data();
    const float* in = x.data();
    const int n_tokens = int(x.shape(0));
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> turn(lock);
    ops.norm_gate(norm, gate_linear, up_linear, in, n_tokens, out);
    return y;
  }

  static NormWeights norm_of(const py::object& w, const py::object& bias) {
    NormWeights norm;
    int bias_dim = 0;
    if (!w.is_none()) norm.w = vector_of(w, &norm.dim);
    if (!bias.is_none()) norm.bias = vector_of(bias, &bias_dim);
    check(!norm.bias || bias_dim == norm.dim, ErrorKind::usage, "norm: expected a bias as long as w");
    return norm;
  }

  void check_product(const Array<float>& x, const NormWeights& norm, const Linear& linear) const {
    check(x.ndim() == 2 && x.shape(0) >= 1 && x.shape(1) == config.dim && linear.n_inputs() == config.dim &&
              (!norm || norm.dim == config.dim),
          ErrorKind::usage, "expected x [n_tokens, ", config.dim, "], and norm and weights of that width");
  }

  const Config config;
  CpuOps ops;
  std::mutex lock;
};

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "russet's C++ core: views of weights in, logits out.";

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      raise_in_python(e);
    }
  });

  py::enum_<NormKind>(m, "NormKind").value("rms", NormKind::rms).value("layer", NormKind::layer);
  py::enum_<Activation>(m, "Activation")
      .value("silu", Activation::silu)
      .value("gelu", Activation::gelu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("relu", Activation::relu);

  py::class_<Rope>(m, "Rope")
      .def(py::init<>())
      .def_readwrite("inv_freq", &Rope::inv_freq)
      .def_readwrite("long_inv_freq", &Rope::long_inv_freq)
      .def_readwrite("scale", &Rope::scale)
      .def_readwrite("long_scale", &Rope::long_scale)
      .def_readwrite("original_ctx", &Rope::original_ctx)
      .def_readwrite("dynamic_factor", &Rope::dynamic_factor)
      .def_readwrite("theta", &Rope::theta);

  py::class_<Config>(m, "Config")
      .def(py::init<>())
      .def_readwrite("n_layers", &Config::n_layers)
      .def_readwrite("dim", &Config::dim)
      .def_readwrite("n_heads", &Config::n_heads)
      .def_readwrite("n_kv_heads", &Config::n_kv_heads)
      .def_readwrite("head_dim", &Config::head_dim)
      .def_readwrite("ffn_dim", &Config::ffn_dim)
      .def_readwrite("vocab_size", &Config::vocab_size)
      .def_readwrite("max_ctx", &Config::max_ctx)
      .def_readwrite("norm", &Config::norm)
      .def_readwrite("norm_eps", &Config::norm_eps)
      .def_readwrite("activation", &Config::activation)
      .def_readwrite("parallel_residual", &Config::parallel_residual)
      .def_readwrite("embed_scale", &Config::embed_scale)
      .def_readwrite("residual_scale", &Config::residual_scale)
      .def_readwrite("attention_scale", &Config::attention_scale)
      .def_readwrite("attention_softcap", &Config::attention_softcap)
      .def_readwrite("logits_scale", &Config::logits_scale)
      .def_readwrite("logits_softcap", &Config::logits_softcap)
      .def_readwrite("ropes", &Config::ropes)
      .def_readwrite("layer_rope", &Config::layer_rope)
      .def_readwrite("layer_window", &Config::layer_window)
      .def_readwrite("n_sinks", &Config::n_sinks);

  m.def("rope_tables", &rope_tables, py::arg("config"), py::arg("pos"), py::arg("n_tokens"),
        py::arg("rope_length") = 0);

  py::class_<Model, std::shared_ptr<Model>>(m, "Model")
      .def(py::init(&make_model), py::arg("config"), py::arg("tensors"))
      .def_readonly("config", &Model::config);

  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
      .def(py::init<size_t>(), py::arg("n_bytes"))
      .def_static("from_file", &arena_from_file, py::arg("file"), py::arg("offset"), py::arg("n_bytes"),
                  py::arg("n_threads") = 1)
      .def_property_readonly("used", &Arena::used)
      .def("keep", &keep_in, py::arg("array"))
      .def("bytes", [](const py::object& self) {
        const Arena& arena = self.cast<const Arena&>();
        py::array_t<uint8_t> bytes(py::ssize_t(arena.used()), reinterpret_cast<const uint8_t*>(arena.bytes()),
                                   self);
        bytes.attr("flags").attr("writeable") = false;
        return bytes;
      });

  m.def(
      "packed_bytes",
      [](int n_rows, int n_cols, int bits, int group_size, const std::string& dtype, bool symmetric,
         bool sliced) {
        check_groups(bits, group_size);
        return packed_bytes(n_rows, n_cols, bits, group_size, dtype_of(dtype), symmetric, sliced);
      },
      py::arg("n_rows"), py::arg("n_cols"), py::arg("bits"), py::arg("group_size"), py::arg("dtype"),
      py::arg("symmetric"), py::arg("sliced") = false);
  m.attr("MAX_SLICED_COLS") = int(kMaxSlicedCols);
  m.def("to_affine", &make_affine, py::arg("w"), py::arg("dtype"), py::arg("bits"), py::arg("group_size"),
        py::arg("symmetric"), py::arg("n_threads") = 1);
  m.def("affine_errors", &errors_of, py::arg("w"), py::arg("dtype"), py::arg("codes"), py::arg("scales"),
        py::arg("biases"), py::arg("bits"), py::arg("group_size"), py::arg("n_threads") = 1);

  py::class_<AffineMatrix>(m, "AffineMatrix")
      .def(py::init([](const py::array& codes, const py::array& scales, const py::array& biases,
                       const std::string& dtype, int bits, int group_size) {
             return AffineMatrix{codes, scales, biases,
                                 affine_of(codes, scales, biases, dtype, bits, group_size)};
           }),
           py::arg("codes"), py::arg("scales"), py::arg("biases"), py::arg("dtype"), py::arg("bits"),
           py::arg("group_size"))
      .def_property_readonly("n_bytes", [](const AffineMatrix& m_) {
        return m_.codes.nbytes() + m_.scales.nbytes() + m_.biases.nbytes();
      });

  py::class_<PackedMatrix>(m, "PackedMatrix")
      .def(py::init(&make_packed), py::arg("arena"), py::arg("codes"), py::arg("scales"), py::arg("biases"),
           py::arg("dtype"), py::arg("bits"), py::arg("group_size"), py::arg("n_threads") = 1,
           py::arg("sliced") = false)
      .def_property_readonly("n_rows", [](const PackedMatrix& p) { return p.view.n_rows; })
      .def_property_readonly("n_cols", [](const PackedMatrix& p) { return p.view.n_cols; })
      .def_property_readonly("bits", [](const PackedMatrix& p) { return p.view.bits; })
      .def_property_readonly("group_size", [](const PackedMatrix& p) { return p.view.group_size; })
      .def_static("at", &packed_in, py::arg("memory"), py::arg("offset"), py::arg("n_rows"),
                  py::arg("n_cols"), py::arg("bits"), py::arg("group_size"), py::arg("dtype"),
                  py::arg("symmetric"), py::arg("sliced") = false)
      .def_property_readonly("offset", &PackedMatrix::offset)
      .def_property_readonly("dtype", [](const PackedMatrix& p) { return name_of(p.view.dtype); })
      .def_property_readonly("n_bytes", &PackedMatrix::n_bytes)
      .def_property_readonly("symmetric", [](const PackedMatrix& p) { return !p.view.biases; })
      .def_property_readonly("sliced", [](const PackedMatrix& p) { return p.view.sliced(); })
      .def_property(
          "blas_tokens", [](const PackedMatrix& p) { return p.view.blas_tokens; },
          [](PackedMatrix& p, int n_tokens) {
            check(n_tokens == 0 || size_t(p.view.n_cols) <= kUnpackedFloats / kBandRows, ErrorKind::usage,
                  "blas_tokens: a matrix of ", p.view.n_cols, " columns is too wide to be unpacked");
            check(n_tokens >= 0 && (n_tokens == 0 || std::string(matmul_library()) != "none"),
                  ErrorKind::usage, "blas_tokens: expected 0, as this build has no BLAS, got ", n_tokens);
            p.view.blas_tokens = n_tokens;
          })
      .def(
          "measure_crossover",
          [](const PackedMatrix& p, int n_threads) { return measure_crossover(p.view, n_threads); },
          py::arg("n_threads"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("radii",
                             [](const PackedMatrix& p) {
                               check(p.view.sliced(), ErrorKind::usage, "radii: the matrix is not sliced");
                               return Array<float>({p.view.n_bands(), kSlices - 1, int(kBandRows)},
                                                   p.view.radii);
                             })
      .def("row", [](const PackedMatrix& p, int row) {
        check(row >= 0 && row < p.view.n_rows, ErrorKind::usage, "row: expected 0 to ", p.view.n_rows - 1);
        Array<float> y(p.view.n_cols);
        unpack_row(p.view, row, y.mutable_data());
        return y;
      });

  bind_kv_cache(m);

  py::class_<Cpu>(m, "Cpu")
      .def(py::init<const Config&, int, int, const std::string&, double>(), py::arg("config"),
           py::arg("n_threads"), py::arg("n_prefill_threads") = 0, py::arg("attention") = "exact",
           py::arg("head_trust") = 1)
      .def_property_readonly("n_threads", [](const Cpu& cpu) { return cpu.ops.n_decode_threads(); })
      .def_property_readonly("n_prefill_threads", [](const Cpu& cpu) { return cpu.ops.n_prefill_threads(); })
      .def("forward", &Cpu::forward, py::arg("model"), py::arg("parts"), py::arg("x") = py::none(),
           py::arg("interrupt") = py::none(), py::arg("wanted") = py::none())
      .def_property_readonly("screened",
                             [](const Cpu& cpu) {
                               const ScreenCounts& counts = cpu.ops.screened();
                               return py::make_tuple(counts.tokens.load(), counts.bytes.load(),
                                                     counts.rows.load());
                             })
      .def("norm_linear", &Cpu::norm_linear, py::arg("norm_w"), py::arg("norm_bias"), py::arg("w"),
           py::arg("x"))
      .def("norm_gate", &Cpu::norm_gate, py::arg("norm_w"), py::arg("norm_bias"), py::arg("gate"),
           py::arg("up"), py::arg("x"));

  bind_sampler(m);

  m.def("default_threads", &default_threads);
  m.def("read_bandwidth", &read_bandwidth, py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
  m.def("int8_peak", &int8_peak, py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
  m.def("cpu_name", &cpu_name);
  m.def("cpu_features", &cpu_feature_names);
  m.def("matmul_library", &matmul_library);

  bind_kernels(m);
  bind_metal(m);
}
