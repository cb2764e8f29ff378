#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "placement/copy_engine.h"
#include "placement/destination.h"
#include "placement/paged_rows.h"
#include "placement/placement.h"
#include "placement/row_copy.h"
#include "placement/source.h"
#include "python/bindings.h"
#include "python/gil.h"
#include "python/item_reader.h"
#include "python/memory_check.h"
#include "python/tensor_reader.h"
#include "runtime/cuda_runtime.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Python passes the address of a table: torch owns the memory, and this module does not depend on torch.
std::int64_t* table_at(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }

// A shorter copy keeps the GIL. It takes some tens of microseconds, and a thread that gets the GIL during it
// may keep it for 5 ms.
constexpr std::int64_t kBytesWithGil = std::int64_t{1} << 18;

// Runs a copy of `bytes` bytes, without the GIL if the copy is long.
template <typename Work>
void copy(std::int64_t bytes, const Work& work) {
  if (bytes < kBytesWithGil)
    work();
  else
    without_gil(work);
}

bool is_copy(const Placement& placement, const Destination& destination) {
  return !placement.has_stores() && placement.places_only(destination.kind);
}

// Checks the memory of a call, and then copies: no Python code runs in between. Returns false if the rows
// cannot be copied unchanged; then the memory was checked for the caller.
bool scatter(const Placement& placement, const MemoryCheck& memory, const Destination& destination,
             py::list planes, py::object items, std::optional<std::vector<std::int64_t>> numbers,
             int num_threads) {
  memory.check(placement, destination, {std::move(planes), std::move(items), std::move(numbers)});
  if (!is_copy(placement, destination)) return false;
  const std::int64_t row_bytes = destination.width * kElementBytes[destination.kind];
  copy(placement.num_rows(destination.kind) * row_bytes,
       [&] { scatter_rows(placement, destination, num_threads); });
  return true;
}

// As `scatter`. The ids are checked here, too: they are numbers in memory that a caller may change.
bool embed(const Placement& placement, const MemoryCheck& memory, const Destination& destination,
           py::list planes, py::object items, std::optional<std::vector<std::int64_t>> numbers,
           const TextTokens& text, const py::object& ids, const py::object& weight, int num_threads) {
  memory.check(placement, destination, {std::move(planes), std::move(items), std::move(numbers)});
  memory.check_text(text, destination, ids, weight);
  placement.check_text_ids(text, destination.num_tokens);
  if (text.kind != destination.kind || !is_copy(placement, destination)) return false;
  const std::int64_t row_bytes = destination.width * kElementBytes[destination.kind];
  copy(destination.num_tokens * row_bytes, [&] { embed_rows(placement, destination, text, num_threads); });
  return true;
}

void bind_destination(py::module_& module) {
  using Planes = std::vector<std::pair<std::uintptr_t, std::int64_t>>;  // (address, row stride in bytes)
  py::class_<Destination>(module, "Destination")
      .def(py::init([](const Planes& planes, std::int64_t num_tokens, std::int64_t hidden, std::int64_t width,
                       int kind, bool on_cuda, std::int32_t device_id,
                       std::optional<std::int64_t> num_packed) {
             Destination destination{{},
                                     num_tokens,
                                     hidden * kElementBytes[kind],
                                     width,
                                     kind,
                                     on_cuda,
                                     device_id,
                                     num_packed.value_or(Destination::kNotPacked)};
             for (const auto& [address, row_stride] : planes)
               destination.planes.push_back({reinterpret_cast<std::byte*>(address), row_stride});
             return destination;
           }),
           py::arg("planes"), py::arg("num_tokens"), py::arg("hidden"), py::arg("width"), py::arg("kind"),
           py::arg("on_cuda"), py::arg("device_id"), py::arg("num_packed") = py::none())
      .def(
          "write_level_table",
          [](const Destination& destination, std::uintptr_t table) {
            destination.write_level_table(table_at(table));
          },
          py::arg("table"))
      .def_readonly("num_tokens", &Destination::num_tokens)
      .def_property_readonly("hidden", &Destination::hidden);
  py::class_<TextTokens>(module, "TextTokens")
      .def(py::init([](std::uintptr_t ids, int id_bytes, std::uintptr_t weight, std::int64_t row_stride,
                       std::int64_t num_embeddings, int kind) {
             return TextTokens{reinterpret_cast<const void*>(ids),
                               id_bytes,
                               reinterpret_cast<const std::byte*>(weight),
                               row_stride,
                               num_embeddings,
                               kind};
           }),
           py::arg("ids"), py::arg("id_bytes"), py::arg("weight"), py::arg("row_stride"),
           py::arg("num_embeddings"), py::arg("kind"));
  py::class_<TensorReader>(module, "TensorReader")
      .def(py::init<py::type, py::type>(), py::arg("tensor_type"), py::arg("parameter_type"))
      .def("is_inside_storage", &TensorReader::is_inside_storage, py::arg("tensor"))
      .def("read_rows", &TensorReader::read_rows, py::arg("rows"))
      .def("read_planes", &TensorReader::read_planes, py::arg("rows"), py::arg("levels"))
      .def("read_packed", &TensorReader::read_packed, py::arg("rows"), py::arg("levels"))
      .def("is_apart", &TensorReader::is_apart, py::arg("destination"), py::arg("tensor"))
      .def("read_text", &TensorReader::read_text, py::arg("ids"), py::arg("weight"));
  py::class_<MemoryCheck>(module, "MemoryCheck")
      .def(py::init<TensorReader, py::object, py::object>(), py::arg("reader"), py::arg("no_subclass"),
           py::arg("explain"));
}

void bind_memory_check(py::module_& module) {
  module.def(
      "check_memory",
      [](const MemoryCheck& memory, const Placement& placement, const Destination& destination,
         py::list planes, py::object items, std::optional<std::vector<std::int64_t>> numbers) {
        memory.check(placement, destination, {std::move(planes), std::move(items), std::move(numbers)});
      },
      py::arg("memory"), py::arg("placement"), py::arg("destination"), py::arg("planes"), py::arg("items"),
      py::arg("numbers"));
  module.def(
      "check_text_memory",
      [](const MemoryCheck& memory, const Destination& destination, const TextTokens& text,
         const py::object& ids,
         const py::object& weight) { memory.check_text(text, destination, ids, weight); },
      py::arg("memory"), py::arg("destination"), py::arg("text"), py::arg("ids"), py::arg("weight"));
}

void bind_copy_engine(py::module_& module) {
  py::class_<PendingCopies>(module, "PendingCopies").def("join", [](PendingCopies& copies) {
    without_gil([&] { copies.join(); });
  });
  py::class_<CopyEngine>(module, "CopyEngine")
      .def(py::init([](std::shared_ptr<CudaRuntime> runtime, int device) {
             return std::make_unique<CopyEngine>(std::move(runtime), device);
           }),
           py::arg("runtime").none(false), py::arg("device"))
      .def(
          "start",
          [](const CopyEngine& engine, Placement& placement, const Destination& destination, Stream stream,
             std::int64_t block_bytes, std::int64_t rows_bytes,
             std::int64_t row_width) -> std::unique_ptr<PendingCopies> {
            const auto& blocks =
                placement.take_host_blocks(destination, {block_bytes, rows_bytes, row_width});
            if (blocks.empty()) return nullptr;
            const std::vector<RowsCopy> copies = copies_of(blocks, placement, destination);
            std::unique_ptr<PendingCopies> pending;
            without_gil([&] { pending = engine.start(copies, stream); });
            return pending;
          },
          py::arg("placement"), py::arg("destination"), py::arg("stream"), py::arg("block_bytes"),
          py::arg("rows_bytes"), py::arg("row_width"));
}

using FourNumbers = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

FourNumbers as_numbers(const Run& run) { return {run.item, run.start, run.length, run.source_start}; }

}  // namespace

void bind_placement(py::module_& module) {
  bind_destination(module);
  py::class_<PagedRows>(module, "PagedRows")
      .def(py::init(&PagedRows::make), py::arg("address"), py::arg("row_stride"), py::arg("num_rows"),
           py::arg("kind"), py::arg("pages"), py::arg("page_rows"), py::arg("width"), py::arg("on_cuda"),
           py::arg("device_id"));
  py::class_<Placement>(module, "Placement")
      .def(py::init<bool>(), py::arg("accepts_narrow") = false)
      .def_property_readonly("accepts_narrow", &Placement::accepts_narrow)
      .def("accept_narrow", &Placement::accept_narrow)
      .def(
          "set_source",
          [](Placement& placement, std::int64_t item, std::uintptr_t address, std::int64_t row_stride,
             std::int64_t num_rows, int kind, bool on_host) {
            placement.set_source(item, Source::block(address, row_stride, num_rows, kind, on_host));
          },
          py::arg("item"), py::arg("address"), py::arg("row_stride"), py::arg("num_rows"), py::arg("kind"),
          py::arg("on_host"))
      .def(
          "set_paged_rows",
          [](Placement& placement, std::int64_t item, const PagedRows& rows, bool on_host) {
            Source source = rows.source;
            source.on_host = on_host;
            placement.set_source(item, std::move(source));
          },
          py::arg("item"), py::arg("rows"), py::arg("on_host"))
      .def("mark_narrow", &Placement::mark_narrow, py::arg("item"))
      .def(
          "is_narrow",
          [](const Placement& placement, std::size_t item) { return placement.sources().at(item).narrow; },
          py::arg("item"))
      .def(
          "add_store",
          [](Placement& placement, std::int64_t item, const PagedRows& rows) {
            placement.add_store(item, rows.source);
          },
          py::arg("item"), py::arg("rows"))
      .def_property_readonly("reads_host", &Placement::reads_host)
      .def(
          "add_run",
          [](Placement& placement, std::int64_t item, std::int64_t start, std::int64_t length,
             std::int64_t source_start) { placement.add_run({item, start, length, source_start}); },
          py::arg("item"), py::arg("start"), py::arg("length"), py::arg("source_start"))
      .def("add_runs", &add_runs, py::arg("table"))
      .def("add_spans", &add_spans, py::arg("spans"), py::arg("span_type"))
      .def("check", &Placement::check, py::arg("destination"), py::arg("is_overlap_checked"))
      .def("find_overlap",
           [](const Placement& placement) -> std::optional<std::pair<FourNumbers, FourNumbers>> {
             const auto overlap = placement.find_overlap();
             if (!overlap) return std::nullopt;
             return std::pair(as_numbers(overlap->first), as_numbers(overlap->second));
           })
      .def(
          "check_text_ids",
          [](const Placement& placement, const MemoryCheck& memory, const TextTokens& text,
             std::int64_t num_tokens, const py::object& ids) {
            memory.check_ids(text, num_tokens, ids);
            placement.check_text_ids(text, num_tokens);
          },
          py::arg("memory"), py::arg("text"), py::arg("num_tokens"), py::arg("ids"))
      .def("scatter", &scatter, py::arg("memory"), py::arg("destination"), py::arg("planes"),
           py::arg("items"), py::arg("numbers"), py::arg("num_threads"))
      .def("embed", &embed, py::arg("memory"), py::arg("destination"), py::arg("planes"), py::arg("items"),
           py::arg("numbers"), py::arg("text"), py::arg("ids"), py::arg("weight"), py::arg("num_threads"))
      .def("read_stores", &Placement::read_stores)
      .def(
          "check_stores_apart",
          [](const Placement& placement, const Destination& destination) {
            placement.check_stores_apart(destination.width, destination.hidden());
          },
          py::arg("destination"))
      .def("runs",
           [](const Placement& placement) {
             std::vector<FourNumbers> runs;
             for (const Run& run : placement.runs()) runs.push_back(as_numbers(run));
             return runs;
           })
      .def_property_readonly("num_placed", &Placement::num_placed)
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
      .def("has_narrow", &Placement::has_narrow, py::arg("kind"))
      .def("aligned", &Placement::aligned, py::arg("kind"))
      .def(
          "write_row_table",
          [](const Placement& placement, int kind, std::uintptr_t table, bool has_ranks) {
            placement.write_row_table(kind, table_at(table), has_ranks);
          },
          py::arg("kind"), py::arg("table"), py::arg("has_ranks") = false)
      .def(
          "write_token_table",
          [](const Placement& placement, int kind, std::uintptr_t table, std::int64_t num_tokens,
             bool has_ranks) { placement.write_token_table(kind, table_at(table), num_tokens, has_ranks); },
          py::arg("kind"), py::arg("table"), py::arg("num_tokens"), py::arg("has_ranks") = false)
      .def(
          "write_stored_row_table",
          [](const Placement& placement, int kind, std::uintptr_t table, bool has_ranks) {
            placement.write_stored_row_table(kind, table_at(table), has_ranks);
          },
          py::arg("kind"), py::arg("table"), py::arg("has_ranks") = false)
      .def(
          "write_stored_token_table",
          [](const Placement& placement, int kind, std::uintptr_t table, std::int64_t num_tokens,
             bool has_ranks) {
            placement.write_stored_token_table(kind, table_at(table), num_tokens, has_ranks);
          },
          py::arg("kind"), py::arg("table"), py::arg("num_tokens"), py::arg("has_ranks") = false);
  bind_memory_check(module);
  bind_copy_engine(module);
  py::class_<ItemReader>(module, "ItemReader")
      .def(py::init<py::type, const TensorReader&>(), py::arg("lease_type"), py::arg("tensors"))
      .def("add", &ItemReader::add, py::arg("placement"), py::arg("items"), py::arg("first"),
           py::arg("destination"))
      .def("set", &ItemReader::set, py::arg("placement"), py::arg("item"), py::arg("rows"),
           py::arg("destination"));
}

}  // namespace vitcache
