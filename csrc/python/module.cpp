// The module vitcache._native: what of the core Python sees. Only this folder sees Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "placement/placement.h"
#include "placement/row_copy.h"
#include "placement/source.h"
#include "python/gil.h"
#include "python/item_reader.h"
#include "ring/fill.h"
#include "ring/ring.h"
#include "ring/ticket.h"
#include "runtime/cuda_runtime.h"
#include "runtime/error.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// vitcache.CudaError is a Python class, so that it exists where this module was not built.
void translate_errors(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const OutOfMemory& out_of_memory) {
    py::set_error(PyExc_MemoryError, out_of_memory.what());
  } catch (const RingTimeout& timeout) {
    py::set_error(PyExc_TimeoutError, timeout.what());
  } catch (const CudaError& cuda_error) {
    py::set_error(py::module_::import("vitcache.errors").attr("CudaError"), cuda_error.what());
  }
}

// Copies of bytes between addresses, queued on one stream in one call.
void copy_batch(const CudaRuntime& runtime, const std::vector<std::uintptr_t>& destinations,
                const std::vector<std::uintptr_t>& sources, const std::vector<std::size_t>& sizes,
                Stream stream) {
  std::vector<void*> to;
  std::vector<const void*> from;
  for (const std::uintptr_t address : destinations) to.push_back(reinterpret_cast<void*>(address));
  for (const std::uintptr_t address : sources) from.push_back(reinterpret_cast<const void*>(address));
  runtime.copy_batch_async(to, from, sizes, stream);
}

std::uintptr_t address_of(const void* handle) { return reinterpret_cast<std::uintptr_t>(handle); }

// Python, too, cannot pass a stream in the place of an event: it makes one of these from a bare handle.
void bind_handles(py::module_& module) {
  py::class_<Stream>(module, "Stream", "A stream by its handle; 0 is the default stream of `device`.")
      .def(py::init([](std::uintptr_t handle, int device) {
             return Stream{reinterpret_cast<void*>(handle), device};
           }),
           py::arg("handle"), py::arg("device"))
      .def_property_readonly("handle", [](const Stream& stream) { return address_of(stream.handle); })
      .def_readonly("device", &Stream::device);
  py::class_<Event>(module, "Event", "An event by its handle, as torch has made it.")
      .def(py::init([](std::uintptr_t handle) { return Event{reinterpret_cast<void*>(handle)}; }),
           py::arg("handle"))
      .def_property_readonly("handle", [](const Event& event) { return address_of(event.handle); });
}

void bind_cuda_runtime(py::module_& module) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  py::class_<CudaDevice>(module, "CudaDevice")
      .def_readonly("name", &CudaDevice::name)
      .def_readonly("major", &CudaDevice::major)
      .def_readonly("minor", &CudaDevice::minor);
  py::class_<CudaRuntime, std::shared_ptr<CudaRuntime>>(module, "CudaRuntime")
      .def(py::init(&CudaRuntime::open), py::arg("directories"), without_gil)
      .def_static("open_file", &CudaRuntime::open_file, py::arg("path"), without_gil)
      .def_property_readonly("available", &CudaRuntime::available)
      .def_property_readonly("path", &CudaRuntime::path)
      .def_property_readonly("searched", &CudaRuntime::searched)
      .def("version", &CudaRuntime::version, without_gil)
      .def("driver_version", &CudaRuntime::driver_version, without_gil)
      .def("devices", &CudaRuntime::devices, without_gil)
      .def("create_stream", &CudaRuntime::create_stream, py::arg("device"), without_gil)
      .def("is_done", &CudaRuntime::is_done, py::arg("event"), without_gil)
      .def("synchronize", &CudaRuntime::synchronize, py::arg("event"), without_gil);
  module.def("copy_batch", &copy_batch, py::arg("runtime"), py::arg("destinations"), py::arg("sources"),
             py::arg("sizes"), py::arg("stream"), without_gil);
}

// Tables are written through an address: torch owns their memory, and this module does not know torch.
std::int64_t* table_at(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }

std::vector<Plane> make_planes(const std::vector<std::pair<std::uintptr_t, std::int64_t>>& planes) {
  std::vector<Plane> made;
  made.reserve(planes.size());
  for (const auto& [address, row_stride] : planes)
    made.push_back({reinterpret_cast<std::byte*>(address), row_stride});
  return made;
}

void bind_row_copy(py::module_& module) {
  using Planes = std::vector<std::pair<std::uintptr_t, std::int64_t>>;  // (address, row stride in bytes)
  using WeightRows = std::tuple<std::uintptr_t, std::int64_t, std::int64_t>;  // (address, row stride, rows)
  module.def(
      "scatter_rows",
      [](std::uintptr_t table, std::int64_t num_rows, const Planes& planes, std::int64_t row_bytes,
         int num_threads) {
        const std::vector<Plane> made = make_planes(planes);
        const py::gil_scoped_release without_gil;
        scatter_rows(table_at(table), num_rows, made, row_bytes, num_threads);
      },
      py::arg("table"), py::arg("num_rows"), py::arg("planes"), py::arg("row_bytes"), py::arg("num_threads"));
  module.def(
      "embed_rows",
      [](std::uintptr_t table, std::int64_t num_tokens, std::uintptr_t ids, int id_bytes,
         const WeightRows& weight, const Planes& planes, std::int64_t row_bytes, int num_threads) {
        const std::vector<Plane> made = make_planes(planes);
        const auto [address, row_stride, num_rows] = weight;
        const Weight rows{reinterpret_cast<const std::byte*>(address), row_stride, num_rows};
        const py::gil_scoped_release without_gil;
        if (id_bytes == 4)
          embed_rows(table_at(table), num_tokens, reinterpret_cast<const std::int32_t*>(ids), rows, made,
                     row_bytes, num_threads);
        else
          embed_rows(table_at(table), num_tokens, reinterpret_cast<const std::int64_t*>(ids), rows, made,
                     row_bytes, num_threads);
      },
      py::arg("table"), py::arg("num_tokens"), py::arg("ids"), py::arg("id_bytes"), py::arg("weight"),
      py::arg("planes"), py::arg("row_bytes"), py::arg("num_threads"));
}

using FourNumbers = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

FourNumbers as_numbers(const Run& run) { return {run.item, run.start, run.length, run.source_start}; }

void bind_placement(py::module_& module) {
  py::class_<PagedRows>(module, "PagedRows")
      .def(py::init(&PagedRows::make), py::arg("address"), py::arg("row_stride"), py::arg("num_rows"),
           py::arg("kind"), py::arg("pages"), py::arg("page_rows"), py::arg("width"), py::arg("on_cuda"),
           py::arg("device_id"));
  py::class_<Placement>(module, "Placement")
      .def(py::init<>())
      .def(
          "add_source",
          [](Placement& placement, std::uintptr_t address, std::int64_t row_stride, std::int64_t num_rows,
             int kind, bool on_host) {
            placement.add_source(Source::block(address, row_stride, num_rows, kind, on_host));
          },
          py::arg("address"), py::arg("row_stride"), py::arg("num_rows"), py::arg("kind"), py::arg("on_host"))
      .def(
          "add_paged_rows",
          [](Placement& placement, const PagedRows& rows, bool on_host) {
            Source source = rows.source;
            source.on_host = on_host;
            placement.add_source(std::move(source));
          },
          py::arg("rows"), py::arg("on_host"))
      .def(
          "add_store",
          [](Placement& placement, std::int64_t item, const PagedRows& rows) {
            placement.add_store(item, rows.source);
          },
          py::arg("item"), py::arg("rows"))
      .def_property_readonly("reads_host", &Placement::reads_host)
      .def_property_readonly("num_runs", [](const Placement& placement) { return placement.runs().size(); })
      .def(
          "add_run",
          [](Placement& placement, std::int64_t item, std::int64_t start, std::int64_t length,
             std::int64_t source_start) { placement.add_run({item, start, length, source_start}); },
          py::arg("item"), py::arg("start"), py::arg("length"), py::arg("source_start"))
      .def("add_runs", &add_runs, py::arg("table"))
      .def("add_spans", &add_spans, py::arg("spans"), py::arg("span_type"))
      .def("check_runs", &Placement::check_runs, py::arg("num_tokens"))
      .def("check_overlap", &Placement::check_overlap)
      .def("find_overlap",
           [](const Placement& placement) -> std::optional<std::pair<FourNumbers, FourNumbers>> {
             const auto overlap = placement.find_overlap();
             if (!overlap) return std::nullopt;
             return std::pair(as_numbers(overlap->first), as_numbers(overlap->second));
           })
      .def(
          "check_text_ids",
          [](const Placement& placement, std::uintptr_t ids, int id_bytes, std::int64_t num_tokens,
             std::int64_t num_rows) {
            if (id_bytes == 4)
              placement.check_text_ids(reinterpret_cast<const std::int32_t*>(ids), num_tokens, num_rows);
            else
              placement.check_text_ids(reinterpret_cast<const std::int64_t*>(ids), num_tokens, num_rows);
          },
          py::arg("ids"), py::arg("id_bytes"), py::arg("num_tokens"), py::arg("num_rows"))
      .def("read_stores", &Placement::read_stores)
      .def("check_apart", &Placement::check_apart, py::arg("begin"), py::arg("end"), py::arg("row_stride"),
           py::arg("row_bytes"), py::arg("width"))
      .def("check_stores_apart", &Placement::check_stores_apart, py::arg("width"))
      .def(
          "take_host_blocks",
          [](Placement& placement, int kind, std::int64_t row_bytes, std::int64_t min_bytes) {
            std::vector<FourNumbers> blocks;
            for (const BlockCopy& block : placement.take_host_blocks(kind, row_bytes, min_bytes))
              blocks.emplace_back(block.item, block.source_row, block.token, block.num_rows);
            return blocks;
          },
          py::arg("kind"), py::arg("row_bytes"), py::arg("min_bytes"))
      .def("runs",
           [](const Placement& placement) {
             std::vector<FourNumbers> runs;
             for (const Run& run : placement.runs()) runs.push_back(as_numbers(run));
             return runs;
           })
      .def("num_rows", &Placement::num_rows, py::arg("kind"))
      .def("kinds",
           [](const Placement& placement) {
             std::vector<int> kinds;
             for (int kind = 0; kind < kNumKinds; ++kind)
               if (placement.num_rows(kind) > 0 || placement.stores(kind)) kinds.push_back(kind);
             return kinds;
           })
      .def("stores", &Placement::stores, py::arg("kind"))
      .def("num_unplaced_rows", &Placement::num_unplaced_rows, py::arg("kind"))
      .def("aligned", &Placement::aligned, py::arg("kind"))
      .def(
          "write_row_table",
          [](const Placement& placement, int kind, std::uintptr_t table) {
            placement.write_row_table(kind, table_at(table));
          },
          py::arg("kind"), py::arg("table"))
      .def(
          "write_token_table",
          [](const Placement& placement, int kind, std::uintptr_t table, std::int64_t num_tokens) {
            placement.write_token_table(kind, table_at(table), num_tokens);
          },
          py::arg("kind"), py::arg("table"), py::arg("num_tokens"))
      .def(
          "write_stored_row_table",
          [](const Placement& placement, int kind, std::uintptr_t table) {
            placement.write_stored_row_table(kind, table_at(table));
          },
          py::arg("kind"), py::arg("table"))
      .def(
          "write_stored_token_table",
          [](const Placement& placement, int kind, std::uintptr_t table, std::int64_t num_tokens) {
            placement.write_stored_token_table(kind, table_at(table), num_tokens);
          },
          py::arg("kind"), py::arg("table"), py::arg("num_tokens"));
  py::class_<ItemReader>(module, "ItemReader")
      .def(py::init<py::type, py::type>(), py::arg("tensor_type"), py::arg("lease_type"))
      .def("add", &ItemReader::add, py::arg("placement"), py::arg("items"), py::arg("first"),
           py::arg("width"), py::arg("on_cuda"), py::arg("device_id"));
}

// A ring of the process that this one was forked off has no threads here: it is left where it is.
struct DeleteRing {
  void operator()(Ring* ring) const {
    if (!ring->is_forked()) delete ring;
  }
};

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
      .def_property_readonly("is_over", &Ticket::is_over);
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
           py::arg("runtime"), py::arg("capacity_bytes"), py::arg("num_threads"), py::arg("piece_bytes"),
           py::arg("device"), py::arg("stream"))
      .def("make_ticket", &Ring::make_ticket)
      .def(
          "copy",
          [](Ring& ring, Ticket& ticket, std::uintptr_t destination, std::uintptr_t source,
             std::int64_t element_bytes, const std::vector<std::int64_t>& shape,
             const std::vector<std::int64_t>& strides, Cast cast, std::optional<Stream> after,
             std::optional<double> timeout) {
            auto view = std::make_shared<const StridedView>(reinterpret_cast<const std::byte*>(source),
                                                            element_bytes, shape, strides);
            const auto seconds =
                timeout ? std::optional(std::chrono::duration<double>(*timeout)) : std::nullopt;
            without_gil([&] {
              ring.copy(ticket, reinterpret_cast<std::byte*>(destination), std::move(view), cast, after,
                        seconds);
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

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("version") = VITCACHE_VERSION;
  module.attr("compiler") = VITCACHE_COMPILER;
  module.attr("flags") = VITCACHE_FLAGS;
  py::register_local_exception_translator(translate_errors);
  bind_handles(module);
  bind_cuda_runtime(module);
  bind_placement(module);
  bind_row_copy(module);
  bind_ring(module);
}

}  // namespace vitcache
