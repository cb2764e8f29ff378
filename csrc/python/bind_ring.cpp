#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "python/bindings.h"
#include "python/gil.h"
#include "ring/fill.h"
#include "ring/ring.h"
#include "ring/ticket.h"
#include "runtime/cuda_runtime.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// In a forked child the threads of the parent's ring do not exist, so the ring is leaked.
struct DeleteRing {
  void operator()(Ring* ring) const {
    if (!ring->is_forked()) delete ring;
  }
};

}  // namespace

void bind_ring(py::module_& module) {
  py::enum_<Cast>(module, "Cast")
      .value("none", Cast::kNone)
      .value("float32_to_bfloat16", Cast::kFloat32ToBfloat16)
      .value("float32_to_float16", Cast::kFloat32ToFloat16);
  py::class_<Ticket, std::shared_ptr<Ticket>>(module, "Ticket")
      .def(
          "wait", [](const Ticket& ticket, Stream stream) { without_gil([&] { ticket.wait(stream); }); },
          py::arg("stream"))
      .def("synchronize", [](const Ticket& ticket) { without_gil([&] { ticket.synchronize(); }); })
      .def("wait_source_read", [](const Ticket& ticket) { without_gil([&] { ticket.wait_source_read(); }); })
      .def_property_readonly("done", &Ticket::done)
      .def_property_readonly("source_read", &Ticket::source_read)
      .def_property_readonly("is_in_flight", &Ticket::is_in_flight);
  py::class_<RingStats>(module, "RingStats")
      .def_readonly("capacity_bytes", &RingStats::capacity_bytes)
      .def_readonly("used_bytes", &RingStats::used_bytes)
      .def_readonly("num_slots", &RingStats::num_slots)
      .def_readonly("num_unread", &RingStats::num_unread)
      .def_readonly("copies", &RingStats::copies)
      .def_readonly("copied_bytes", &RingStats::copied_bytes)
      .def_readonly("construction_seconds", &RingStats::construction_seconds);
  py::class_<Ring, std::unique_ptr<Ring, DeleteRing>>(module, "Ring")
      .def(py::init([](std::shared_ptr<CudaRuntime> runtime, std::size_t capacity_bytes, int num_threads,
                       std::size_t piece_bytes, int device, std::optional<Stream> stream) {
             std::unique_ptr<Ring, DeleteRing> ring;
             without_gil([&] {
               ring.reset(
                   new Ring(std::move(runtime), {capacity_bytes, num_threads, piece_bytes, device, stream}));
             });
             return ring;
           }),
           py::arg("runtime").none(false), py::arg("capacity_bytes"), py::arg("num_threads"),
           py::arg("piece_bytes"), py::arg("device"), py::arg("stream"))
      .def("make_ticket", &Ring::make_ticket)
      .def(
          "copy",
          [](Ring& ring, Ticket& ticket, std::uintptr_t destination, std::uintptr_t source,
             std::int64_t element_bytes, const std::vector<std::int64_t>& shape,
             const std::vector<std::int64_t>& strides, Cast cast, std::optional<Stream> after,
             std::optional<double> timeout) {
            const auto view = std::make_shared<const StridedView>(reinterpret_cast<const std::byte*>(source),
                                                                  element_bytes, shape, strides);
            const auto seconds =
                timeout ? std::optional(std::chrono::duration<double>(*timeout)) : std::nullopt;
            without_gil([&] {
              ring.copy(ticket, reinterpret_cast<std::byte*>(destination), view, cast, after, seconds);
            });
          },
          py::arg("ticket"), py::arg("destination"), py::arg("source"), py::arg("element_bytes"),
          py::arg("shape"), py::arg("strides"), py::arg("cast"), py::arg("after"), py::arg("timeout"))
      .def("hold", &Ring::hold)
      .def("release", &Ring::release)
      .def("close", [](Ring& ring) { without_gil([&] { ring.close(); }); })
      .def("stats",
           [](Ring& ring) {
             RingStats stats{};
             without_gil([&] { stats = ring.stats(); });
             return stats;
           })
      .def("check_integrity", &Ring::check_integrity)
      .def_property_readonly("stream", &Ring::stream);
}

}  // namespace vitcache
