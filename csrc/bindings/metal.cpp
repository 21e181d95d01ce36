// The Metal backend's part of russet._core: devices, and a model on one of them.
#include <pybind11/stl.h>

#include <memory>
#include <mutex>

#include "backends/metal/device.h"
#include "backends/metal/greedy.h"
#include "backends/metal/metal_ops.h"
#include "bindings/model.h"

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

struct MetalCache;

// A model's weights shown to a device, and the operations over them. Calls from several threads take turns.
struct Metal {
  // `memory`: the arrays of whole pages, the files' maps and arenas, in which all weights lie.
  Metal(std::shared_ptr<metal::Device> d, std::shared_ptr<Model> m, const std::string& dtype,
        const std::vector<py::array>& memory)
      : device(std::move(d)), model(std::move(m)), owners(memory) {
    for (const py::array& pages : memory)
      mappings.emplace_back(*device, pages.data(), size_t(pages.nbytes()));
    const DType type = dtype_of(dtype);
    const py::gil_scoped_release release;
    ops = std::make_unique<metal::MetalOps>(model->config, model->weights, type, *device);
  }

  Array<float> forward(const std::vector<Part>& parts) {
    return forward_parts(*model, parts, *ops, ops->dtype(), lock);
  }

  int32_t append_greedy(MetalCache& cache, int32_t token, int rope_length);

  std::shared_ptr<metal::Device> device;
  std::shared_ptr<Model> model;
  std::vector<py::array> owners;
  std::vector<metal::Mapping> mappings;
  std::unique_ptr<metal::MetalOps> ops;
  std::mutex lock;
};

// The cache of one sequence, hidden from the device before it goes.
struct MetalCache : KvCache {
  MetalCache(std::shared_ptr<Metal> m, int n_ctx)
      : KvCache(m->model->config, n_ctx, m->ops->dtype()), metal(std::move(m)) {}
  MetalCache(const MetalCache&) = delete;
  ~MetalCache() {
    const std::lock_guard<std::mutex> turn(metal->lock);
    metal->ops->forget(*this);
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

}  // namespace

void bind_metal(py::module_& m) {
  py::class_<metal::Device, std::shared_ptr<metal::Device>>(m, "MetalDevice")
      .def_static(
          "apple",
          [](const std::vector<std::string>& sources) { return shared(metal::apple_device(sources)); },
          py::arg("sources"), py::call_guard<py::gil_scoped_release>())
      .def_static(
          "simulated",
          [](const std::vector<std::string>& libraries, uint32_t schedule) {
            return shared(metal::simulated_device(libraries, schedule));
          },
          py::arg("libraries"), py::arg("schedule") = 0)
      .def_property_readonly("info", &described);

  py::class_<Metal, std::shared_ptr<Metal>>(m, "Metal")
      .def(py::init<std::shared_ptr<metal::Device>, std::shared_ptr<Model>, const std::string&,
                    const std::vector<py::array>&>(),
           py::arg("device"), py::arg("model"), py::arg("dtype"), py::arg("memory"))
      .def("forward", &Metal::forward, py::arg("parts"))
      .def("append_greedy", &Metal::append_greedy, py::arg("cache"), py::arg("token"),
           py::arg("rope_length") = 0);

  py::class_<MetalCache, KvCache>(m, "MetalCache")
      .def(py::init<std::shared_ptr<Metal>, int>(), py::arg("metal"), py::arg("n_ctx"));
}
