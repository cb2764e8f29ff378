#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "placement/placement.h"
#include "placement/row_copy.h"
#include "placement/source.h"
#include "python/bindings.h"
#include "python/item_reader.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Python passes the address of a table: torch owns the memory, and this module does not depend on torch.
std::int64_t* table_at(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }

std::vector<Plane> make_planes(const std::vector<std::pair<std::uintptr_t, std::int64_t>>& planes) {
  std::vector<Plane> native;
  native.reserve(planes.size());
  for (const auto& [address, row_stride] : planes)
    native.push_back({reinterpret_cast<std::byte*>(address), row_stride});
  return native;
}

void bind_row_copy(py::module_& module) {
  using Planes = std::vector<std::pair<std::uintptr_t, std::int64_t>>;  // (address, row stride in bytes)
  using WeightRows = std::pair<std::uintptr_t, std::int64_t>;           // (address, row stride)
  module.def(
      "scatter_rows",
      [](std::uintptr_t table, std::int64_t num_rows, const Planes& planes, std::int64_t row_bytes,
         int num_threads) {
        const std::vector<Plane> native_planes = make_planes(planes);
        const py::gil_scoped_release without_gil;
        scatter_rows(table_at(table), num_rows, native_planes, row_bytes, num_threads);
      },
      py::arg("table"), py::arg("num_rows"), py::arg("planes"), py::arg("row_bytes"), py::arg("num_threads"));
  module.def(
      "embed_rows",
      [](std::uintptr_t table, std::int64_t num_tokens, std::uintptr_t ids, int id_bytes,
         const WeightRows& weight, const Planes& planes, std::int64_t row_bytes, int num_threads) {
        const std::vector<Plane> native_planes = make_planes(planes);
        const Weight rows{reinterpret_cast<const std::byte*>(weight.first), weight.second};
        const py::gil_scoped_release without_gil;
        if (id_bytes == 4)
          embed_rows(table_at(table), num_tokens, reinterpret_cast<const std::int32_t*>(ids), rows,
                     native_planes, row_bytes, num_threads);
        else
          embed_rows(table_at(table), num_tokens, reinterpret_cast<const std::int64_t*>(ids), rows,
                     native_planes, row_bytes, num_threads);
      },
      py::arg("table"), py::arg("num_tokens"), py::arg("ids"), py::arg("id_bytes"), py::arg("weight"),
      py::arg("planes"), py::arg("row_bytes"), py::arg("num_threads"));
}

using FourNumbers = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

FourNumbers as_numbers(const Run& run) { return {run.item, run.start, run.length, run.source_start}; }

}  // namespace

void bind_placement(py::module_& module) {
  bind_row_copy(module);
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

}  // namespace vitcache
