#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "python/bindings.h"
#include "python/gil.h"
#include "runtime/cuda_runtime.h"
#include "runtime/device_guard.h"
#include "runtime/handles.h"
#include "runtime/host_limits.h"
#include "runtime/pinned_region.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Queues copies on `stream` in one call. Each copy is (destination, source, bytes).
void copy_batch(const CudaRuntime& runtime,
                const std::vector<std::tuple<std::uintptr_t, std::uintptr_t, std::size_t>>& copies,
                Stream stream) {
  std::vector<void*> destinations;
  std::vector<const void*> sources;
  std::vector<std::size_t> sizes;
  destinations.reserve(copies.size());
  sources.reserve(copies.size());
  sizes.reserve(copies.size());
  for (const auto& [destination, source, bytes] : copies) {
    destinations.push_back(reinterpret_cast<void*>(destination));
    sources.push_back(reinterpret_cast<const void*>(source));
    sizes.push_back(bytes);
  }
  runtime.copy_batch_async(destinations, sources, sizes, stream);
}

// Frees a region without the GIL: to unlock and unmap many gigabytes takes seconds.
// In a forked child the memory is not mapped, and its addresses may be in use again: the region is leaked.
struct DeleteRegion {
  pid_t process = getpid();
  void operator()(PinnedRegion* region) const {
    if (getpid() == process) without_gil([region] { delete region; });
  }
};

// A context in which the calling thread is in the relaxed capture mode. Its methods are C functions, so an
// interrupt cannot leave the thread in that mode.
class __attribute__((visibility("hidden"))) RelaxedCapture {
 public:
  explicit RelaxedCapture(std::shared_ptr<CudaRuntime> runtime) : runtime_(std::move(runtime)) {}

  void enter() { earlier_mode_ = runtime_->exchange_capture_mode(kRelaxedMode); }
  void exit() { runtime_->exchange_capture_mode(earlier_mode_); }

 private:
  static constexpr int kRelaxedMode = 2;  // cudaStreamCaptureModeRelaxed

  std::shared_ptr<CudaRuntime> runtime_;
  int earlier_mode_ = kRelaxedMode;
};

std::uintptr_t address_of(const void* handle) { return reinterpret_cast<std::uintptr_t>(handle); }

// Python wraps integer handles in these two types, so it cannot pass a stream in place of an event.
void bind_handles(py::module_& module) {
  py::class_<Stream>(module, "Stream", "A stream by its handle; 0 is the default stream of `device`.")
      .def(py::init([](std::uintptr_t handle, int device) {
             return Stream{reinterpret_cast<void*>(handle), device};
           }),
           py::arg("handle"), py::arg("device"))
      .def_property_readonly("handle", [](const Stream& stream) { return address_of(stream.handle); })
      .def_readonly("device", &Stream::device);
  py::class_<Event>(module, "Event", "An event by its handle.")
      .def(py::init([](std::uintptr_t handle) { return Event{reinterpret_cast<void*>(handle)}; }),
           py::arg("handle"))
      .def_property_readonly("handle", [](const Event& event) { return address_of(event.handle); });
}

}  // namespace

void bind_runtime(py::module_& module) {
  bind_handles(module);
  const py::call_guard<py::gil_scoped_release> releases_gil;
  py::class_<CudaDevice>(module, "CudaDevice")
      .def_readonly("name", &CudaDevice::name)
      .def_readonly("major", &CudaDevice::major)
      .def_readonly("minor", &CudaDevice::minor);
  py::class_<CudaRuntime, std::shared_ptr<CudaRuntime>>(module, "CudaRuntime")
      .def(py::init(&CudaRuntime::open), py::arg("directories"), releases_gil)
      .def_static("open_file", &CudaRuntime::open_file, py::arg("path"), releases_gil)
      .def_property_readonly("available", &CudaRuntime::available)
      .def_property_readonly("path", &CudaRuntime::path)
      .def_property_readonly("searched", &CudaRuntime::searched)
      .def("version", &CudaRuntime::version, releases_gil)
      .def("driver_version", &CudaRuntime::driver_version, releases_gil)
      .def("devices", &CudaRuntime::devices, releases_gil)
      .def("create_stream", &CudaRuntime::create_stream, py::arg("device"), releases_gil)
      .def("exchange_capture_mode", &CudaRuntime::exchange_capture_mode, py::arg("mode"))
      .def("is_done", &CudaRuntime::is_done, py::arg("event"), releases_gil)
      .def("synchronize", &CudaRuntime::synchronize, py::arg("event"), releases_gil);
  py::class_<RelaxedCapture>(module, "RelaxedCapture")
      .def(py::init<std::shared_ptr<CudaRuntime>>(), py::arg("runtime").none(false))
      .def("__enter__", &RelaxedCapture::enter)
      .def(
          "__exit__",
          [](RelaxedCapture& capture, const py::object&, const py::object&, const py::object&) {
            capture.exit();
          },
          py::arg("error_type"), py::arg("error"), py::arg("traceback"));
  py::class_<PinnedRegion, std::unique_ptr<PinnedRegion, DeleteRegion>>(module, "PinnedRegion",
                                                                        py::buffer_protocol())
      .def(py::init([](std::shared_ptr<CudaRuntime> runtime, std::size_t bytes, int num_threads, int device) {
             std::unique_ptr<PinnedRegion, DeleteRegion> region;
             without_gil([&] {
               const DeviceGuard guard(*runtime, device);
               region.reset(new PinnedRegion(runtime, bytes, num_threads));
             });
             return region;
           }),
           py::arg("runtime").none(false), py::arg("bytes"), py::arg("num_threads"), py::arg("device"))
      .def_buffer([](PinnedRegion& region) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(region.data()),
                               static_cast<py::ssize_t>(region.bytes()));
      });
  module.def("describe_available_host_bytes", &describe_available_host_bytes, releases_gil);
  module.def("copy_batch", &copy_batch, py::arg("runtime"), py::arg("copies"), py::arg("stream"),
             releases_gil);
}

}  // namespace vitcache
