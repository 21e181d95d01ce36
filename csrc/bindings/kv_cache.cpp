// The cache's part of russet._core: pools of blocks, and the caches of sequences in them.
#include "kv_cache/kv_cache.h"

#include <pybind11/pybind11.h>

#include <memory>

#include "bindings/arrays.h"
#include "bindings/model.h"

namespace py = pybind11;
using namespace russet;

namespace {

std::shared_ptr<BlockPool> make_pool(const Config& config, const std::string& keys, const std::string& values,
                                     size_t n_bytes) {
  const KvFormat format{kv_type_of(keys), kv_type_of(values), config.head_dim, true};
  check(format.keys != KvType::int4, ErrorKind::usage,
        "kv_dtype: int4 is for values alone; take 'int8' for keys");
  return std::make_shared<BlockPool>(format, n_bytes);
}

py::dict described(const BlockPool& pool) {
  py::dict info;
  info["block_bytes"] = pool.block_bytes();
  info["n_blocks"] = pool.n_blocks();
  info["n_in_use"] = pool.n_in_use();
  info["n_peak"] = pool.n_peak();
  return info;
}

// [n_blocks of the sequence] of one head: which block of the pool, 0 for none
Array<uint32_t> table_of(const KvCache& cache, int layer, int head) {
  const auto n = py::ssize_t((cache.n_tokens() + kBlockTokens - 1) / kBlockTokens);
  return Array<uint32_t>(n, cache.table(layer, head));
}

// [n_blocks of the sequence] of one head: how much each block was looked at
Array<float> mass_of(const KvCache& cache, int layer, int head) {
  check(cache.masses(), ErrorKind::usage, "mass: a cache with a budget of 1 does not count");
  const auto n = py::ssize_t((cache.n_tokens() + kBlockTokens - 1) / kBlockTokens);
  return Array<float>(n, cache.mass(layer, head));
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  m.attr("BLOCK_TOKENS") = int(kBlockTokens);

  py::class_<BlockPool, std::shared_ptr<BlockPool>>(m, "BlockPool")
      .def(py::init(&make_pool), py::arg("config"), py::arg("keys"), py::arg("values"), py::arg("n_bytes"))
      .def_property_readonly("info", &described);

  py::class_<KvCache>(m, "KvCache")
      .def(py::init([](const std::shared_ptr<BlockPool>& pool, const Model& model, int n_ctx, double budget) {
             return std::make_unique<KvCache>(pool, model.config, n_ctx, budget);
           }),
           py::arg("pool"), py::arg("model"), py::arg("n_ctx"), py::arg("budget") = 1.0)
      .def_property_readonly("n_ctx", &KvCache::n_ctx)
      .def_property_readonly("n_tokens", &KvCache::n_tokens)
      .def("truncate", &KvCache::truncate, py::arg("n_tokens"))
      .def("can_truncate", &KvCache::can_truncate, py::arg("n_tokens"))
      .def(
          "fork",
          [](const KvCache& cache, int n_tokens) { return std::make_unique<KvCache>(cache, n_tokens); },
          py::arg("n_tokens"))
      .def("table", &table_of, py::arg("layer"), py::arg("head"))
      .def("mass", &mass_of, py::arg("layer"), py::arg("head"))
      .def("bytes", &KvCache::bytes);
}
