#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings.h"
#include "python/copies_in_flight.h"
#include "python/gil.h"
#include "python/tensor_reader.h"
#include "ring/fill.h"
#include "ring/ring.h"
#include "ring/ticket.h"
#include "runtime/byte_range.h"
#include "runtime/cuda_runtime.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Waits for the copies of a ring without the GIL. In a forked child the threads of the parent's ring do not
// exist, so the ring is leaked.
struct DeleteRing {
  void operator()(Ring* ring) const {
    if (!ring->is_forked()) without_gil([ring] { delete ring; });
  }
};

// A ring, and the memory of its copies, which is freed after the ring.
struct __attribute__((visibility("hidden"))) BoundRing {
  std::shared_ptr<CopiesInFlight> in_flight = std::make_shared<CopiesInFlight>();
  std::unique_ptr<Ring, DeleteRing> ring;
};

// A context in which no slot of a ring retires. An interrupt cannot separate the hold from this object, which
// releases it when it is freed.
class __attribute__((visibility("hidden"))) RingHold {
 public:
  explicit RingHold(BoundRing& ring) : ring_(*ring.ring) {}
  RingHold(const RingHold&) = delete;
  RingHold& operator=(const RingHold&) = delete;
  ~RingHold() {
    while (holds_ > 0) exit();
  }

  void enter() {
    ring_.hold();
    ++holds_;
  }
  void exit() {
    if (holds_ == 0) return;
    --holds_;
    ring_.release();
  }

 private:
  Ring& ring_;
  int holds_ = 0;
};

// Throws std::invalid_argument unless the storage of a plain tensor contains the bytes. Its methods are C
// functions: between this check and the use of the address, no Python code can resize the storage.
void check_storage(const char* name, const py::object& tensor, const std::optional<ByteRange>& range) {
  const ByteRange storage = read_storage(tensor.ptr());
  if (range && storage.contains(*range)) return;
  throw std::invalid_argument(
      std::string(name) + " is a tensor of " + std::to_string(range ? range->end - range->begin : 0) +
      " bytes that are not inside of its storage, which has " + std::to_string(storage.end - storage.begin) +
      " bytes: the storage was resized");
}

std::shared_ptr<Ticket> copy(BoundRing& self, const py::object& destination, const py::object& source_tensor,
                             std::uintptr_t source, std::int64_t element_bytes,
                             const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides,
                             Cast cast, std::optional<Stream> after, std::optional<double> timeout,
                             py::object source_owner, py::object kept_destination) {
  const auto view = std::make_shared<const StridedView>(reinterpret_cast<const std::byte*>(source),
                                                        element_bytes, shape, strides);
  const auto seconds = timeout ? std::optional(std::chrono::duration<double>(*timeout)) : std::nullopt;
  const std::shared_ptr<Ticket> ticket = self.ring->make_ticket();
  const auto address = destination.attr("data_ptr")().cast<std::uintptr_t>();
  check_storage("dst", destination,
                rows_range(address, 0, 1, view->num_elements() * cast_bytes(cast, element_bytes)));
  if (!source_tensor.is_none()) check_storage("src", source_tensor, view->range());
  const auto entry = self.in_flight->add({ticket, std::move(source_owner), std::move(kept_destination)});
  struct EndQueueing {
    CopiesInFlight& in_flight;
    CopiesInFlight::Copy& copy;
    ~EndQueueing() {                        // also after a timeout: pieces of the copy may be in flight
      if (PyGILState_Check() == 0) return;  // the interpreter ends, and unwinds this daemon thread
      copy.is_queueing = false;
      in_flight.reap();
    }
  } const end_queueing{*self.in_flight, *entry};
  without_gil_interruptibly([&](Interrupts interrupts) {
    self.ring->copy(*ticket, reinterpret_cast<std::byte*>(address), view, cast, after, seconds,
                    std::move(interrupts));
  });
  return ticket;
}

void bind_ticket(py::module_& module) {
  py::class_<Ticket, std::shared_ptr<Ticket>>(module, "Ticket")
      .def(
          "wait", [](const Ticket& ticket, Stream stream) { without_gil([&] { ticket.wait(stream); }); },
          py::arg("stream"))
      .def("synchronize",
           [](const Ticket& ticket) {
             without_gil_interruptibly(
                 [&](Interrupts interrupts) { ticket.synchronize(std::move(interrupts)); });
           })
      .def("wait_source_read",
           [](const Ticket& ticket) {
             without_gil_interruptibly(
                 [&](Interrupts interrupts) { ticket.wait_source_read(std::move(interrupts)); });
           })
      .def_property_readonly("done", &Ticket::done)
      .def_property_readonly("source_read", &Ticket::source_read);
}

}  // namespace

void bind_ring(py::module_& module) {
  py::enum_<Cast>(module, "Cast")
      .value("none", Cast::kNone)
      .value("float32_to_bfloat16", Cast::kFloat32ToBfloat16)
      .value("float32_to_float16", Cast::kFloat32ToFloat16);
  bind_ticket(module);
  py::class_<RingStats>(module, "RingStats")
      .def_readonly("capacity_bytes", &RingStats::capacity_bytes)
      .def_readonly("used_bytes", &RingStats::used_bytes)
      .def_readonly("num_slots", &RingStats::num_slots)
      .def_readonly("num_unread", &RingStats::num_unread)
      .def_readonly("copies", &RingStats::copies)
      .def_readonly("copied_bytes", &RingStats::copied_bytes)
      .def_readonly("construction_seconds", &RingStats::construction_seconds);
  py::class_<CopiesInFlight, std::shared_ptr<CopiesInFlight>>(module, "CopiesInFlight")
      .def("reap", &CopiesInFlight::reap)
      .def("__len__", &CopiesInFlight::count);
  py::class_<RingHold>(module, "RingHold")
      .def("__enter__", &RingHold::enter)
      .def(
          "__exit__",
          [](RingHold& hold, const py::object&, const py::object&, const py::object&) { hold.exit(); },
          py::arg("error_type"), py::arg("error"), py::arg("traceback"));
  py::class_<BoundRing>(module, "Ring")
      .def(py::init([](std::shared_ptr<CudaRuntime> runtime, std::size_t capacity_bytes, int num_threads,
                       std::size_t piece_bytes, int device, std::optional<Stream> stream) {
             auto bound = std::make_unique<BoundRing>();
             without_gil([&] {
               bound->ring.reset(
                   new Ring(std::move(runtime), {capacity_bytes, num_threads, piece_bytes, device, stream}));
             });
             return bound;
           }),
           py::arg("runtime").none(false), py::arg("capacity_bytes"), py::arg("num_threads"),
           py::arg("piece_bytes"), py::arg("device"), py::arg("stream"))
      .def("copy", &copy, py::arg("destination"), py::arg("source_tensor"), py::arg("source"),
           py::arg("element_bytes"), py::arg("shape"), py::arg("strides"), py::arg("cast"), py::arg("after"),
           py::arg("timeout"), py::arg("source_owner"), py::arg("kept_destination"))
      .def(
          "hold", [](BoundRing& bound) { return std::make_unique<RingHold>(bound); }, py::keep_alive<0, 1>())
      .def("close",
           [](BoundRing& bound) {
             without_gil_interruptibly(
                 [&](Interrupts interrupts) { bound.ring->close(std::move(interrupts)); });
             bound.in_flight->reap();
           })
      .def("stats",
           [](BoundRing& bound) {
             RingStats stats{};
             without_gil([&] { stats = bound.ring->stats(); });
             return stats;
           })
      .def("check_integrity", [](BoundRing& bound) { bound.ring->check_integrity(); })
      .def_property_readonly("is_closed", [](BoundRing& bound) { return bound.ring->is_closed(); })
      .def_property_readonly("in_flight", [](BoundRing& bound) { return bound.in_flight; })
      .def_property_readonly("stream", [](BoundRing& bound) { return bound.ring->stream(); });
}

}  // namespace vitcache
