// The cache's part of russet._core: pools of blocks, and the caches of sequences in them.
#include "kv_cache/kv_cache.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/model.h"

namespace py = pybind11;
using namespace russet;

namespace {

KvFormat format_of(const std::string& keys, const std::string& values, int head_dim) {
  const KvFormat format{kv_type_of(keys), kv_type_of(values), head_dim, true};
  check(format.keys != KvType::int4, ErrorKind::usage,
        "kv_dtype: int4 is for values alone; take 'int8' for keys");
  return format;
}

std::shared_ptr<BlockPool> make_pool(const Config& config, const std::string& keys, const std::string& values,
                                     size_t n_bytes) {
  return std::make_shared<BlockPool>(format_of(keys, values, config.head_dim), n_bytes);
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
  const auto n = py::ssize_t(blocks_for(cache.n_tokens()));
  return Array<uint32_t>(n, cache.table(layer, head));
}

// [n_blocks of the sequence] of one head: how much each block was looked at
Array<float> mass_of(const KvCache& cache, int layer, int head) {
  check(cache.masses(), ErrorKind::usage, "mass: a cache with a budget of 1 does not count");
  const auto n = py::ssize_t(blocks_for(cache.n_tokens()));
  return Array<float>(n, cache.mass(layer, head));
}

// The bytes [n, block_bytes] of some blocks. Who asks holds them.
Array<uint8_t> read_blocks(const BlockPool& pool, const Array<uint32_t>& blocks) {
  Array<uint8_t> bytes({size_t(blocks.size()), pool.block_bytes()});
  for (py::ssize_t i = 0; i < blocks.size(); ++i) {
    const BlockId block = blocks.data()[i];
    check(block < pool.touched_bytes() / pool.block_bytes(), ErrorKind::usage, "cache: there is no block ",
          block);
    std::memcpy(bytes.mutable_data() + size_t(i) * pool.block_bytes(), pool.at(block), pool.block_bytes());
  }
  return bytes;
}

// One sequence as a file has it: its tokens, and tables [n_layers, n_kv_heads, n] that count the file's
// blocks from 1 on, 0 for none.
using Stored = std::pair<int, Array<uint32_t>>;

// Caches that share blocks of these bytes [n, block_bytes]: all, or none where one throws Error{usage}, or
// the pool Error{memory}.
std::vector<std::unique_ptr<KvCache>> restore_caches(const std::shared_ptr<BlockPool>& pool,
                                                     const Model& model, int n_ctx,
                                                     const Array<uint8_t>& bytes,
                                                     const std::vector<Stored>& sequences) {
  check(bytes.ndim() == 2 && size_t(bytes.shape(1)) == pool->block_bytes(), ErrorKind::usage,
        "cache: expected blocks of ", pool->block_bytes(), " bytes");
  struct Held {  // until the caches hold them
    BlockPool& pool;
    std::vector<BlockId> blocks;
    ~Held() { pool.release(blocks); }
  } held{*pool, std::vector<BlockId>(size_t(bytes.shape(0)), kNoBlock)};
  {
    const py::gil_scoped_release release;
    pool->take(held.blocks);
    for (size_t i = 0; i < held.blocks.size(); ++i)
      std::memcpy(pool->at(held.blocks[i]), bytes.data() + i * pool->block_bytes(), pool->block_bytes());
  }
  std::vector<std::unique_ptr<KvCache>> caches;
  for (const auto& [n_tokens, stored] : sequences) {
    std::vector<BlockId> tables;
    for (py::ssize_t i = 0; i < stored.size(); ++i) {
      const uint32_t at = stored.data()[i];
      check(at <= held.blocks.size(), ErrorKind::usage, "cache: a table names block ", at, " of ",
            held.blocks.size());
      tables.push_back(at == 0 ? kNoBlock : held.blocks[at - 1]);
    }
    caches.push_back(std::make_unique<KvCache>(pool, model.config, n_ctx, n_tokens, tables));
  }
  return caches;
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  m.attr("BLOCK_TOKENS") = int(kBlockTokens);
  m.def(
      "kv_block_bytes",
      [](const std::string& keys, const std::string& values, int head_dim) {
        return format_of(keys, values, head_dim).block_bytes();
      },
      py::arg("keys"), py::arg("values"), py::arg("head_dim"));
  m.def("restore_caches", &restore_caches, py::arg("pool"), py::arg("model"), py::arg("n_ctx"),
        py::arg("blocks"), py::arg("sequences"));

  py::class_<BlockPool, std::shared_ptr<BlockPool>>(m, "BlockPool")
      .def(py::init(&make_pool), py::arg("config"), py::arg("keys"), py::arg("values"), py::arg("n_bytes"))
      .def_property_readonly("info", &described)
      .def("read", &read_blocks, py::arg("blocks"));

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
