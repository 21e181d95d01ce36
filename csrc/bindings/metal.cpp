// The Metal backend's part of russet._core: devices, and a model on one of them.
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>

#include "backends/metal/device.h"
#include "backends/metal/device_sim.h"
#include "backends/metal/greedy.h"
#include "backends/metal/metal_ops.h"
#include "bindings/model.h"
#include "kernels/widen/widen.h"

namespace py = pybind11;
using namespace russet;

namespace {

std::shared_ptr<metal::Device> shared(std::unique_ptr<metal::Device> device) {
  return device;
}

py::dict described(const metal::Device& device) {
  const metal::DeviceInfo info = device.info();
  py::dict dict;
  dict["name"] = info.name;
  dict["simulated"] = info.simulated;
  dict["working_set"] = info.working_set;
  dict["max_map_bytes"] = info.max_map_bytes;
  return dict;
}

// kernel -> what its dispatches did, of a simulated device
py::dict traffic(const metal::Device& device) {
  py::dict dict;
  if (const auto* simulated = dynamic_cast<const metal::SimulatedDevice*>(&device))
    for (const auto& [kernel, t] : simulated->traffic()) {
      py::dict one;
      one["dispatches"] = t.n_dispatches;
      one["read"] = t.read;
      one["read_distinct"] = t.read_distinct;
      one["written"] = t.written;
      one["written_distinct"] = t.written_distinct;
      dict[kernel.c_str()] = one;
    }
  return dict;
}

struct MetalCache;

// A model's weights shown to a device, and the operations over them. Calls from several threads take turns.
struct Metal {
  // `memory`: the arrays of whole pages, the files' maps and arenas, in which all weights lie. in_cache:
  // dtype or int8. cache_bytes: of all caches together; less where the device cannot see so much in one
  // piece.
  Metal(std::shared_ptr<metal::Device> d, std::shared_ptr<Model> m, const std::string& dtype,
        const std::vector<py::array>& memory, const std::string& in_cache, size_t cache_bytes)
      : device(std::move(d)), model(std::move(m)), owners(memory) {
    for (const py::array& pages : memory)
      mappings.emplace_back(*device, pages.data(), size_t(pages.nbytes()));
    const DType type = dtype_of(dtype);
    const KvType kept_as = kv_type_of(in_cache);
    check(kept_as == kv_type(type) || kept_as == KvType::int8, ErrorKind::usage,
          "metal: the cache keeps keys and values as ", dtype, " or int8, not as ", in_cache);
    const py::gil_scoped_release release;
    ops = std::make_unique<metal::MetalOps>(model->config, model->weights, type, kept_as, *device);
    const KvFormat format{kept_as, kept_as, model->config.head_dim, false};
    const size_t block_0_and_page = format.block_bytes() + size_t(sysconf(_SC_PAGESIZE));
    const size_t most = std::max(device->info().max_map_bytes, block_0_and_page) - block_0_and_page;
    pool = std::make_shared<BlockPool>(format, std::min(cache_bytes, most));
  }

  // A turn for who changes what passes see: those that were begun are done.
  std::unique_lock<std::mutex> settled() {
    std::unique_lock<std::mutex> turn(lock);
    ops->settle();
    return turn;
  }

  Array<float> forward(const std::vector<Part>& parts, const X& x) {
    return forward_parts(
        *model, parts, x, *ops, [this](const KvCache& cache) { return &cache.pool() == pool.get(); }, lock);
  }

  int32_t append_greedy(MetalCache& cache, int32_t token, int rope_length);

  std::shared_ptr<metal::Device> device;
  std::shared_ptr<Model> model;
  std::vector<py::array> owners;
  std::vector<metal::Mapping> mappings;
  std::shared_ptr<BlockPool> pool;
  std::unique_ptr<metal::MetalOps> ops;  // the first to go
  std::mutex lock;
};

// The cache of one sequence. A pass under way reads its tables and writes to its blocks, as the one that
// Greedy begins before it is asked for: nobody else is given these blocks, or a share in them, until it is
// done. (Blocks that a window gives back are out of such a pass's sight: KvCache keeps a few more.)
struct MetalCache : KvCache {
  MetalCache(std::shared_ptr<Metal> m, int n_ctx)
      : KvCache(m->pool, m->model->config, n_ctx), metal(std::move(m)) {}
  MetalCache(const MetalCache& origin, int n_tokens) : KvCache(origin, n_tokens), metal(origin.metal) {}
  ~MetalCache() {
    const std::lock_guard<std::mutex> turn(metal->lock);
    metal->ops->forget(*this);
  }

  std::unique_ptr<MetalCache> fork(int n_tokens) const {
    const auto turn = metal->settled();
    return std::make_unique<MetalCache>(*this, n_tokens);
  }
  void truncate(int n_tokens) {
    const auto turn = metal->settled();
    if (n_tokens == 0) metal->ops->forget(*this);  // all its blocks go, and their pages may
    KvCache::truncate(n_tokens);
  }

  std::shared_ptr<Metal> metal;
  russet::metal::Greedy greedy;
};

int32_t Metal::append_greedy(MetalCache& cache, int32_t token, int rope_length) {
  check(cache.metal.get() == this, ErrorKind::usage, "append_greedy: a cache was made for another model");
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> turn(lock);
  return cache.greedy.next(model->config, model->weights, *ops, cache, token, rope_length);
}

// One matrix on a device, to be multiplied by: for tests, and to compare devices. It is an operation of a
// model without layers whose embedding and head it is.
struct MetalProduct {
  MetalProduct(std::shared_ptr<metal::Device> d, const py::object& w, const std::string& dtype,
               const std::vector<py::array>& memory)
      : device(std::move(d)), owners(memory.begin(), memory.end()) {
    for (const py::array& pages : memory)
      mappings.emplace_back(*device, pages.data(), size_t(pages.nbytes()));
    model.weights.embed = model.weights.head.w = matrix_of(w);
    model.config.dim = model.weights.head.n_inputs();
    model.config.n_heads = model.config.n_kv_heads = model.config.head_dim = 1;
    ops = std::make_unique<metal::MetalOps>(model.config, model.weights, dtype_of(dtype),
                                            kv_type(dtype_of(dtype)), *device);
    owners.push_back(w);
  }

  // x [n_tokens, n_cols] -> y [n_tokens, n_rows], and the seconds that one of n_times products took.
  py::tuple run(const Array<float>& x, int n_times) {
    const int n_tokens = int(x.shape(0)), n_rows = model.weights.head.n_outputs();
    check(x.ndim() == 2 && x.shape(1) == model.config.dim && n_tokens >= 1 && n_times >= 1, ErrorKind::usage,
          "product: expected x [n_tokens, ", model.config.dim, "]");
    const size_t width = size_t(n_rows) * size_of(ops->dtype());
    Buffer room(size_t(x.nbytes()) + 64 + size_t(n_tokens) * width);
    const metal::Mapping shown(*device, room.bytes(), room.size());
    std::memcpy(room.bytes(), x.data(), size_t(x.nbytes()));
    char* y = room.bytes() + (size_t(x.nbytes()) + 63) / 64 * 64;
    Array<float> result({n_tokens, n_rows});
    ops->activations(n_tokens);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < n_times; ++i)
      ops->norm_linear({}, room.floats(), n_tokens, {{model.weights.head, y}});
    ops->finish();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    for (int t = 0; t < n_tokens; ++t)
      widen({y + size_t(t) * width, ops->dtype(), result.mutable_data() + size_t(t) * size_t(n_rows),
             size_t(n_rows)});
    return py::make_tuple(result, took.count() / n_times);
  }

  std::shared_ptr<metal::Device> device;
  std::vector<py::object> owners;
  std::vector<metal::Mapping> mappings;
  Model model;
  std::unique_ptr<metal::MetalOps> ops;
};

}  // namespace

void bind_metal(py::module_& m) {
  py::class_<metal::Device, std::shared_ptr<metal::Device>>(m, "MetalDevice")
      .def_static(
          "apple",
          [](const std::vector<std::string>& sources) { return shared(metal::apple_device(sources)); },
          py::arg("sources"), py::call_guard<py::gil_scoped_release>())
      .def_static(
          "simulated",
          [](const std::vector<std::string>& libraries, uint32_t schedule, const std::string& fault,
             uint64_t at, size_t max_map_bytes) {
            const std::map<std::string, metal::Fault::Kind> kinds = {
                {"", metal::Fault::Kind::none},
                {"swap", metal::Fault::Kind::swap},
                {"late", metal::Fault::Kind::late},
                {"shrink", metal::Fault::Kind::shrink},
                {"barrier", metal::Fault::Kind::barrier}};
            const auto kind = kinds.find(fault);
            check(kind != kinds.end(), ErrorKind::usage,
                  "fault: expected swap, late, shrink or barrier, got ", fault);
            return shared(metal::simulated_device(libraries, schedule, {kind->second, at}, max_map_bytes));
          },
          py::arg("libraries"), py::arg("schedule") = 0, py::arg("fault") = "", py::arg("at") = 0,
          py::arg("max_map_bytes") = 0)
      .def_property_readonly("info", &described)
      .def("traffic", &traffic);

  py::class_<Metal, std::shared_ptr<Metal>>(m, "Metal")
      .def(py::init<std::shared_ptr<metal::Device>, std::shared_ptr<Model>, const std::string&,
                    const std::vector<py::array>&, const std::string&, size_t>(),
           py::arg("device"), py::arg("model"), py::arg("dtype"), py::arg("memory"), py::arg("in_cache"),
           py::arg("cache_bytes"))
      .def_property_readonly("pool", [](const Metal& metal) { return metal.pool; })
      .def("forward", &Metal::forward, py::arg("parts"), py::arg("x") = py::none())
      .def("append_greedy", &Metal::append_greedy, py::arg("cache"), py::arg("token"),
           py::arg("rope_length") = 0);

  py::class_<MetalCache, KvCache>(m, "MetalCache")
      .def(py::init<std::shared_ptr<Metal>, int>(), py::arg("metal"), py::arg("n_ctx"))
      .def("fork", &MetalCache::fork, py::arg("n_tokens"), py::call_guard<py::gil_scoped_release>())
      .def("truncate", &MetalCache::truncate, py::arg("n_tokens"), py::call_guard<py::gil_scoped_release>());

  py::class_<MetalProduct>(m, "MetalProduct")
      .def(py::init<std::shared_ptr<metal::Device>, const py::object&, const std::string&,
                    const std::vector<py::array>&>(),
           py::arg("device"), py::arg("w"), py::arg("dtype"), py::arg("memory"))
      .def("run", &MetalProduct::run, py::arg("x"), py::arg("n_times") = 1);
}
