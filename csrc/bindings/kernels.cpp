// russet._core.kernels: every variant of every kernel by name, for tests and benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "backends/cpu/screen.h"
#include "bindings/arrays.h"
#include "core/buffer.h"
#include "core/parallel.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_int8.h"
#include "kernels/attention/attention_mass.h"
#include "kernels/block_max/block_max.h"
#include "kernels/fit/fit.h"
#include "kernels/gate/gate.h"
#include "kernels/kv_store/kv_load.h"
#include "kernels/kv_store/kv_store.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matvec/matvec.h"
#include "kernels/merge/merge.h"
#include "kernels/norm/norm.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/quantize/quantize.h"
#include "kernels/rope/rope.h"
#include "kernels/scale_sums/scale_sums.h"
#include "kernels/slice_dot/slice_dot.h"
#include "kernels/sum_exp/sum_exp.h"
#include "kernels/widen/widen.h"

namespace py = pybind11;
using namespace russet;

namespace {

template <typename Fn>
Fn* find(std::span<const Variant<Fn>> table, const std::string& name) {
  for (const Variant<Fn>& variant : table)
    if (variant.name == name) {
      check(runs_here(variant.needs), ErrorKind::usage, "variant '", name,
            "' needs a feature this chip lacks");
      return variant.run;
    }
  fail(ErrorKind::usage, "no variant '", name, "'");
}

// [(name, runs here, is the one used)]
template <typename Fn>
py::list describe(const char* op, std::span<const Variant<Fn>> table) {
  py::list rows;
  const Variant<Fn>* active = &pick(op, table);
  for (const Variant<Fn>& variant : table)
    rows.append(py::make_tuple(variant.name, runs_here(variant.needs), &variant == active));
  return rows;
}

py::dict variants() {
  py::dict tables;
  tables["matvec"] = describe("matvec", matvec_variants(DType::bf16));
  tables["matvec_f32"] = describe("matvec_f32", matvec_variants(DType::f32));
  tables["matmul"] = describe("matmul", matmul_variants(DType::f32));
  tables["matmul_bf16"] = describe("matmul_bf16", matmul_variants(DType::bf16));
  tables["quantize"] = describe("quantize", quantize_variants());
  tables["fit"] = describe("fit", fit_variants());
  tables["qmatmul"] = describe("qmatmul", qmatmul_variants());
  tables["attention"] = describe("attention", attention_variants());
  tables["attention_sage"] = describe("attention_sage", attention_variants(AttentionKind::sage));
  tables["attention_integer"] = describe("attention_integer", attention_variants(AttentionKind::integer));
  tables["attention_mass"] = describe("attention_mass", attention_mass_variants());
  tables["kv_store"] = describe("kv_store", kv_store_variants());
  tables["norm"] = describe("norm", norm_variants());
  tables["rope"] = describe("rope", rope_variants());
  tables["gate"] = describe("gate", gate_variants());
  tables["block_max"] = describe("block_max", block_max_variants());
  tables["slice_dot"] = describe("slice_dot", slice_dot_variants());
  tables["merge"] = describe("merge", merge_variants());
  tables["scale_sums"] = describe("scale_sums", scale_sums_variants());
  tables["sum_exp"] = describe("sum_exp", sum_exp_variants());
  tables["widen"] = describe("widen", widen_variants());
  return tables;
}

Array<float> run_matvec(const std::string& variant, const py::tuple& w, const Array<float>& x) {
  const View view = view_of(w);
  check(x.ndim() == 2 && x.shape(1) == view.n_cols, ErrorKind::usage, "matvec: x has the wrong shape");
  Array<float> y({x.shape(0), py::ssize_t(view.n_rows)});
  const MatvecArgs args{view, x.data(), y.mutable_data(), int(x.shape(0)), size_t(view.n_rows)};
  MatvecFn* run = find(matvec_variants(view.dtype), variant);
  const py::gil_scoped_release release;
  run(args);
  return y;
}

Array<float> run_matmul(const std::string& variant, const py::tuple& w, const Array<float>& x) {
  const View view = view_of(w);
  check(x.ndim() == 2 && x.shape(1) == view.n_cols, ErrorKind::usage, "matmul: x has the wrong shape");
  Array<float> y({x.shape(0), py::ssize_t(view.n_rows)});
  check(view.n_cols >= 1 && size_t(view.n_cols) <= kMatmulScratchFloats, ErrorKind::usage,
        "matmul: expected 1 to ", kMatmulScratchFloats, " columns, got ", view.n_cols);
  MatmulFn* run = find(matmul_variants(view.dtype), variant);
  static thread_local const Buffer scratch(kMatmulScratchFloats * sizeof(float));
  const MatmulArgs args{x.data(),        view, y.mutable_data(), int(x.shape(0)), size_t(view.n_rows),
                        scratch.floats()};
  const py::gil_scoped_release release;
  run(args);
  return y;
}

// x [n_tokens, n_cols] -> codes, scales, sums
py::tuple run_quantize(const std::string& variant, const Array<float>& x, int group_size) {
  check(x.ndim() == 2 && group_size >= 16 && group_size % 16 == 0 && x.shape(1) % group_size == 0,
        ErrorKind::usage, "quantize: expected x [n_tokens, n_cols] of whole groups");
  Array<int8_t> codes({x.shape(0), x.shape(1)});
  Array<float> scales({x.shape(0), x.shape(1) / group_size});
  Array<int32_t> sums({x.shape(0), x.shape(1) / group_size});
  find(quantize_variants(), variant)({x.data(), codes.mutable_data(), scales.mutable_data(),
                                      sums.mutable_data(), int(x.shape(0)), int(x.shape(1)), group_size});
  return py::make_tuple(codes, scales, sums);
}

// w [n_groups, group_size] -> codes, scales, biases
py::tuple run_fit(const std::string& variant, const Array<float>& w, const std::string& dtype, int bits,
                  bool symmetric) {
  check(w.ndim() == 2, ErrorKind::usage, "fit: expected w [n_groups, group_size]");
  check_groups(bits, int(w.shape(1)));
  Array<uint8_t> codes({w.shape(0), w.shape(1)});
  Array<float> scales(w.shape(0)), biases(w.shape(0));
  find(fit_variants(), variant)({w.data(), int(w.shape(0)), int(w.shape(1)), bits, symmetric, dtype_of(dtype),
                                 codes.mutable_data(), scales.mutable_data(), biases.mutable_data()});
  return py::make_tuple(codes, scales, biases);
}

Array<float> run_qmatmul(const std::string& variant, const PackedMatrix& w, const Array<int8_t>& codes,
                         const Array<float>& scales, const Array<int32_t>& sums) {
  const auto is = [&](const auto& a, int width) {
    return a.ndim() == 2 && a.shape(0) == codes.shape(0) && a.shape(1) == width;
  };
  check(is(codes, w.view.n_cols) && is(scales, w.view.n_groups()) && is(sums, w.view.n_groups()),
        ErrorKind::usage, "qmatmul: x has the wrong shape");
  check(!w.view.sliced(), ErrorKind::usage, "qmatmul: expected tiles, got slices");
  Array<float> y({codes.shape(0), py::ssize_t(w.view.n_rows)});
  QmatmulFn* run = find(qmatmul_variants(), variant);
  static thread_local const Buffer scratch(kQmatmulScratchBytes);
  const QmatmulArgs args{w.view,
                         {codes.data(), scales.data(), sums.data()},
                         y.mutable_data(),
                         int(codes.shape(0)),
                         size_t(w.view.n_rows),
                         reinterpret_cast<uint8_t*>(scratch.bytes())};
  const py::gil_scoped_release release;
  run(args);
  return y;
}

// ---- a sliced matrix ----

void check_band(const PackedMatrix& w, int b) {
  check(w.view.sliced() && b >= 0 && b < w.view.n_bands(), ErrorKind::usage,
        "expected a sliced matrix, and one of its bands");
}

// -> sums [n_groups, 16]
Array<int32_t> run_slice_dot(const std::string& variant, const PackedMatrix& w, int b, int index,
                             const Array<int8_t>& codes) {
  check_band(w, b);
  check(index >= 0 && index < kSlices && codes.size() == w.view.n_cols, ErrorKind::usage,
        "slice_dot: expected slice 0, 1 or 2, and a code for each column");
  const Buffer sums(w.view.band_scales() * sizeof(int32_t));
  auto* memory = reinterpret_cast<int32_t*>(sums.bytes());
  find(slice_dot_variants(),
       variant)({w.view.slice(index, b), index, w.view.n_cols, w.view.group_size, codes.data(), memory});
  return Array<int32_t>({w.view.n_groups(), int(kBandRows)}, memory);
}

// -> tiles [n_cols / 4, 64]
Array<uint8_t> run_merge(const std::string& variant, const PackedMatrix& w, int b) {
  check_band(w, b);
  const Packed& p = w.view;
  const Buffer tiles(p.band_bytes());
  auto* memory = reinterpret_cast<uint8_t*>(tiles.bytes());
  find(merge_variants(), variant)({{p.slice(0, b), p.slice(1, b), p.slice(2, b)}, p.n_cols, memory});
  return Array<uint8_t>({p.n_cols / 4, 64}, memory);
}

// -> y [16]
Array<float> run_scale_sums(const std::string& variant, const PackedMatrix& w, int b,
                            const Array<int32_t>& sums, int center, const Array<float>& scales,
                            const Array<int32_t>& x_sums) {
  check_band(w, b);
  check(size_t(sums.size()) == w.view.band_scales() && scales.size() == w.view.n_groups() &&
            x_sums.size() == w.view.n_groups(),
        ErrorKind::usage, "scale_sums: expected sums [n_groups, 16], and scales and sums of x [n_groups]");
  const Buffer aligned(w.view.band_scales() * sizeof(int32_t));
  auto* memory = reinterpret_cast<int32_t*>(aligned.bytes());
  std::copy_n(sums.data(), sums.size(), memory);
  Array<float> y(kBandRows);
  find(scale_sums_variants(), variant)({w.view.rows(b * kBandRows, w.view.n_rows),
                                        memory,
                                        center,
                                        {nullptr, scales.data(), x_sums.data()},
                                        y.mutable_data()});
  return y;
}

// -> logits [n_rows], bytes read, rows computed exactly
py::tuple run_screen(const PackedMatrix& w, const Array<int8_t>& codes, const Array<float>& scales,
                     const Array<int32_t>& sums, const Wanted& wanted, double trust, int n_threads) {
  check(w.view.sliced() && codes.size() == w.view.n_cols && scales.size() == w.view.n_groups() &&
            sums.size() == w.view.n_groups() && wanted.k > 0,
        ErrorKind::usage, "screen: expected a sliced matrix, one token for it, and wanted.k from 1 on");
  Array<float> logits(w.view.n_rows);
  float* out = logits.mutable_data();
  ScreenCounts counts;
  {
    const py::gil_scoped_release release;
    const size_t n_sums = w.view.band_scales();
    const Buffer memory(size_t(n_threads) * n_sums * sizeof(int32_t));
    parallel(n_threads, [&](Share share) {
      const auto [begin, end] = share.of(w.view.n_rows, kBandRows);
      if (begin == end) return;
      auto* room = reinterpret_cast<int32_t*>(memory.bytes()) + size_t(share.thread) * n_sums;
      screen({w.view.rows(begin, end),
              begin,
              {codes.data(), scales.data(), sums.data()},
              wanted,
              wanted.margin,
              trust,
              out + begin,
              room},
             counts);
    });
  }
  return py::make_tuple(logits, counts.bytes.load(), counts.rows.load());
}

Array<float> run_norm(const std::string& variant, NormKind kind, const Array<float>& x, const Array<float>& w,
                      const py::object& bias, float eps) {
  const Array<float> b = bias.is_none() ? Array<float>(0) : py::cast<Array<float>>(bias);
  check(x.ndim() == 2 && w.size() == x.shape(1) && (bias.is_none() || b.size() == x.shape(1)),
        ErrorKind::usage, "norm: w or bias has the wrong length");
  Array<float> y({x.shape(0), x.shape(1)});
  find(norm_variants(), variant)({kind, x.data(), w.data(), bias.is_none() ? nullptr : b.data(), eps,
                                  y.mutable_data(), int(x.shape(0)), int(x.shape(1))});
  return y;
}

Array<float> run_rope(const std::string& variant, const Array<float>& x, const Array<float>& cos,
                      const Array<float>& sin) {
  check(x.ndim() == 2 && cos.size() == sin.size() && 2 * cos.size() <= x.shape(1), ErrorKind::usage,
        "rope: cos and sin have the wrong length");
  Array<float> y(std::vector<py::ssize_t>{x.shape(0), x.shape(1)}, x.data());
  find(rope_variants(), variant)(
      {y.mutable_data(), cos.data(), sin.data(), int(x.shape(0)), int(x.shape(1)), int(2 * cos.size())});
  return y;
}

Array<float> run_block_max(const std::string& variant, const Array<float>& x) {
  Array<float> maxima(n_blocks(int(x.size())));
  find(block_max_variants(), variant)({x.data(), int(x.size()), maxima.mutable_data()});
  return maxima;
}

// -> sums, weights (None where they are not asked for)
py::tuple run_sum_exp(const std::string& variant, const Array<float>& x, float max, float scale,
                      bool with_weights) {
  Array<float> sums(n_blocks(int(x.size()))), weights(with_weights ? x.size() : 0);
  float* out = with_weights ? weights.mutable_data() : nullptr;
  find(sum_exp_variants(), variant)({x.data(), int(x.size()), max, scale, sums.mutable_data(), out});
  return py::make_tuple(sums, with_weights ? py::object(weights) : py::none());
}

Array<float> run_gate(const std::string& variant, Activation activation, const Array<float>& gate,
                      const py::object& up) {
  Array<float> y(gate.size());
  const Array<float> u = up.is_none() ? Array<float>(0) : py::cast<Array<float>>(up);
  check(up.is_none() || u.size() == gate.size(), ErrorKind::usage, "gate: up has the wrong length");
  find(gate_variants(), variant)(
      {activation, gate.data(), up.is_none() ? nullptr : u.data(), y.mutable_data(), int(gate.size())});
  return y;
}

Array<float> run_widen(const std::string& variant, const py::tuple& x) {
  const View view = view_of(x);
  Array<float> y({view.n_rows, view.n_cols});
  find(widen_variants(),
       variant)({view.data, view.dtype, y.mutable_data(), size_t(view.n_rows) * size_t(view.n_cols)});
  return y;
}

// Blocks with the tokens' keys and values, and the table that names them; `absent` are in no block.
struct Blocks {
  Blocks(const KvFormat& format, const Array<float>& k, const Array<float>& v, const std::set<int>& absent,
         KvStoreFn* store)
      : table(blocks_for(int(k.shape(0)))), memory((table.size() + 1) * format.block_bytes()) {
    const int n = int(k.shape(0));
    for (int at = 0; at < n; at += kBlockTokens) {
      const size_t block = size_t(at) / kBlockTokens, row = size_t(at) * size_t(format.head_dim);
      table[block] = absent.contains(int(block)) ? kNoBlock : BlockId(block + 1);
      store({k.data() + row, v.data() + row, size_t(format.head_dim), std::min<int>(kBlockTokens, n - at), 0,
             memory.bytes() + (block + 1) * format.block_bytes(), format});
    }
  }
  std::vector<BlockId> table;
  Buffer memory;
};

void check_kv(const Array<float>& k, const Array<float>& v) {
  check(k.ndim() == 2 && v.ndim() == 2 && k.shape(0) == v.shape(0) && k.shape(1) == v.shape(1) &&
            k.shape(0) >= 1 && k.shape(1) >= 1 && k.shape(1) <= kMaxHeadDim,
        ErrorKind::usage, "expected k and v [n_keys, head_dim]");
}

// q [n_tokens, n_heads, head_dim], the last token seeing all of k and v [n_keys, head_dim] -> out like q
Array<float> run_attention(const std::string& variant, const Array<float>& q, const Array<float>& k,
                           const Array<float>& v, float scale, int window, int n_sinks, float softcap,
                           const std::string& keys, const std::string& values, const std::set<int>& absent,
                           const std::string& kind) {
  check_kv(k, v);
  check(q.ndim() == 3 && q.shape(2) == k.shape(1) && q.shape(0) >= 1 && q.shape(1) >= 1 &&
            q.shape(0) * q.shape(1) <= kAttentionRows && q.shape(0) <= k.shape(0),
        ErrorKind::usage, "attention: expected q [n_tokens, n_heads, head_dim], at most ",
        int(kAttentionRows), " rows");
  const KvFormat format{kv_type_of(keys), kv_type_of(values), int(k.shape(1)), true};
  const Blocks blocks(format, k, v, absent, kv_store);
  Array<float> out({q.shape(0), q.shape(1), q.shape(2)});
  static thread_local const Buffer scratch(kAttentionScratchFloats * sizeof(float));
  AttentionFn* const run = find(attention_variants(attention_kind_of(kind)), variant);
  const py::gil_scoped_release release;
  attention(*run, {q.data(), out.mutable_data(), size_t(q.shape(1) * q.shape(2)), int(q.shape(0)),
                   int(q.shape(1)), int(k.shape(0) - q.shape(0)), blocks.table.data(), blocks.memory.bytes(),
                   format, window, n_sinks, scale, softcap, scratch.floats()});
  return out;
}

// q and k as run_attention() takes them -> what of each block was looked at [n_blocks]
Array<float> run_attention_mass(const std::string& variant, const Array<float>& q, const Array<float>& k,
                                float scale, int window, int n_sinks, float softcap, const std::string& keys,
                                const std::set<int>& absent) {
  check_kv(k, k);
  check(q.ndim() == 3 && q.shape(2) == k.shape(1) && q.shape(0) >= 1 && q.shape(1) >= 1 &&
            q.shape(0) <= k.shape(0),
        ErrorKind::usage, "attention_mass: expected q [n_tokens, n_heads, head_dim]");
  const KvFormat format{kv_type_of(keys), KvType::f32, int(k.shape(1)), true};
  const Blocks blocks(format, k, k, absent, kv_store);
  Array<float> mass(py::ssize_t(blocks.table.size()));
  std::fill_n(mass.mutable_data(), mass.size(), 0.0f);
  const int n_rows = int(q.shape(0) * q.shape(1));
  const Buffer scratch(sizeof(float) * attention_mass_scratch(n_rows, int(k.shape(0)), format.head_dim));
  find(attention_mass_variants(),
       variant)({q.data(), size_t(q.shape(1) * q.shape(2)), int(q.shape(0)), int(q.shape(1)),
                 int(k.shape(0) - q.shape(0)), blocks.table.data(), blocks.memory.bytes(), format, window,
                 n_sinks, scale, softcap, mass.mutable_data(), scratch.floats()});
  return mass;
}

// Heads of a pool, all with the same keys and values: enough of them to come from memory.
struct KvHeads {
  KvHeads(const Array<float>& k, const Array<float>& v, int n_heads, const std::string& keys,
          const std::string& values)
      : tables(size_t(n_heads), std::vector<BlockId>(blocks_for(int(k.shape(0))))) {
    check_kv(k, v);
    const KvFormat format{kv_type_of(keys), kv_type_of(values), int(k.shape(1)), true};
    const Blocks one(format, k, v, {}, kv_store);
    n_bytes = size_t(n_heads) * one.table.size() * format.block_bytes();
    pool = std::make_unique<BlockPool>(format, n_bytes);
    for (std::vector<BlockId>& table : tables) {
      pool->take(table);
      for (size_t b = 0; b < table.size(); ++b)
        std::copy_n(one.memory.bytes() + one.table[b] * format.block_bytes(), format.block_bytes(),
                    pool->at(table[b]));
    }
    args.blocks = pool->data();
    args.format = format;
    args.scale = 1;
    args.pos = int(k.shape(0));
  }

  // q [n_tokens, n_heads, head_dim], the last tokens of the text, over the keys of every head in turn
  void attention(const std::string& variant, const Array<float>& q) const {
    check(q.ndim() == 3 && q.shape(2) == args.format.head_dim && q.shape(0) * q.shape(1) <= kAttentionRows &&
              q.shape(0) <= args.pos,
          ErrorKind::usage, "attention: q has the wrong shape");
    AttentionFn* const run = find(attention_variants(), variant);
    Array<float> out({q.shape(0), q.shape(1), q.shape(2)});
    static thread_local const Buffer scratch(kAttentionScratchFloats * sizeof(float));
    AttentionArgs a = args;
    a.q = q.data(), a.out = out.mutable_data(), a.scratch = scratch.floats();
    a.stride = size_t(q.shape(1) * q.shape(2));
    a.n_tokens = int(q.shape(0)), a.n_heads = int(q.shape(1)), a.pos = args.pos - a.n_tokens;
    const py::gil_scoped_release release;
    for (const std::vector<BlockId>& table : tables) {
      a.table = table.data();
      russet::attention(*run, a);
    }
  }

  std::vector<std::vector<BlockId>> tables;
  std::unique_ptr<BlockPool> pool;
  AttentionArgs args{};
  size_t n_bytes = 0;
};

// k and v [n_keys, head_dim] -> the same as a block gives them back
py::tuple run_kv_store(const std::string& variant, const Array<float>& k, const Array<float>& v,
                       const std::string& keys, const std::string& values, bool keys_by_columns) {
  check_kv(k, v);
  const KvFormat format{kv_type_of(keys), kv_type_of(values), int(k.shape(1)), keys_by_columns};
  const Blocks blocks(format, k, v, {}, find(kv_store_variants(), variant));
  Array<float> k_out({k.shape(0), k.shape(1)}), v_out({k.shape(0), k.shape(1)});
  for (int j = 0; j < int(k.shape(0)); ++j) {
    const char* block = blocks.memory.bytes() + size_t(j / kBlockTokens + 1) * format.block_bytes();
    load_key(format, block, j % kBlockTokens, k_out.mutable_data(j));
    load_value(format, block, j % kBlockTokens, v_out.mutable_data(j));
  }
  return py::make_tuple(k_out, v_out);
}

}  // namespace

void bind_kernels(py::module_& m) {
  py::module_ kernels = m.def_submodule("kernels", "Every variant of every kernel, by name.");
  kernels.def("variants", &variants, "op -> [(name, runs here, is the one used)]");
  kernels.def("matvec", &run_matvec, py::arg("variant"), py::arg("w"), py::arg("x"));
  kernels.def("matmul", &run_matmul, py::arg("variant"), py::arg("w"), py::arg("x"));
  kernels.def("quantize", &run_quantize, py::arg("variant"), py::arg("x"), py::arg("group_size"));
  kernels.def("fit", &run_fit, py::arg("variant"), py::arg("w"), py::arg("dtype"), py::arg("bits"),
              py::arg("symmetric"));
  kernels.def("qmatmul", &run_qmatmul, py::arg("variant"), py::arg("w"), py::arg("codes"), py::arg("scales"),
              py::arg("sums"));
  kernels.def("norm", &run_norm, py::arg("variant"), py::arg("kind"), py::arg("x"), py::arg("w"),
              py::arg("bias") = py::none(), py::arg("eps") = 1e-5f);
  kernels.def("rope", &run_rope, py::arg("variant"), py::arg("x"), py::arg("cos"), py::arg("sin"));
  kernels.attr("BLOCK_FLOATS") = kBlockFloats;
  kernels.def("block_max", &run_block_max, py::arg("variant"), py::arg("x"));
  kernels.def("slice_dot", &run_slice_dot, py::arg("variant"), py::arg("w"), py::arg("band"),
              py::arg("index"), py::arg("codes"));
  kernels.def("merge", &run_merge, py::arg("variant"), py::arg("w"), py::arg("band"));
  kernels.def("scale_sums", &run_scale_sums, py::arg("variant"), py::arg("w"), py::arg("band"),
              py::arg("sums"), py::arg("center"), py::arg("scales"), py::arg("x_sums"));
  kernels.def("screen", &run_screen, py::arg("w"), py::arg("codes"), py::arg("scales"), py::arg("sums"),
              py::arg("wanted"), py::arg("trust") = 1, py::arg("n_threads") = 1);
  kernels.def("sum_exp", &run_sum_exp, py::arg("variant"), py::arg("x"), py::arg("max"), py::arg("scale"),
              py::arg("with_weights") = true);
  kernels.def("gate", &run_gate, py::arg("variant"), py::arg("activation"), py::arg("gate"),
              py::arg("up") = py::none());
  kernels.def("widen", &run_widen, py::arg("variant"), py::arg("x"));
  kernels.def("attention", &run_attention, py::arg("variant"), py::arg("q"), py::arg("k"), py::arg("v"),
              py::kw_only(), py::arg("scale") = 1.0f, py::arg("window") = 0, py::arg("n_sinks") = 0,
              py::arg("softcap") = 0.0f, py::arg("keys") = "f32", py::arg("values") = "f32",
              py::arg("absent") = std::set<int>{}, py::arg("kind") = "exact");
  kernels.def("attention_mass", &run_attention_mass, py::arg("variant"), py::arg("q"), py::arg("k"),
              py::kw_only(), py::arg("scale") = 1.0f, py::arg("window") = 0, py::arg("n_sinks") = 0,
              py::arg("softcap") = 0.0f, py::arg("keys") = "f32", py::arg("absent") = std::set<int>{});

  py::class_<KvHeads>(kernels, "KvHeads")
      .def(py::init<const Array<float>&, const Array<float>&, int, const std::string&, const std::string&>(),
           py::arg("k"), py::arg("v"), py::kw_only(), py::arg("n_heads"), py::arg("keys"), py::arg("values"))
      .def_readonly("n_bytes", &KvHeads::n_bytes)
      .def("attention", &KvHeads::attention, py::arg("variant"), py::arg("q"));
  kernels.def("kv_store", &run_kv_store, py::arg("variant"), py::arg("k"), py::arg("v"), py::kw_only(),
              py::arg("keys") = "f32", py::arg("values") = "f32", py::arg("keys_by_columns") = true);
}
