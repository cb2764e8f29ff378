#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pipeline/item_arrays.h"
#include "pipeline/source_table.h"
#include "pipeline/step_plan.h"
#include "placement/destination.h"
#include "placement/paged_rows.h"
#include "placement/placement.h"
#include "python/bindings.h"
#include "python/chunk_reader.h"
#include "python/keys.h"

namespace py = pybind11;

namespace vitcache {
namespace {

using Place = std::pair<std::int64_t, std::int64_t>;  // (chunk, position)

Place as_place(const Occurrence& occurrence) { return {occurrence.chunk, occurrence.position}; }

std::vector<Place> as_places(const std::vector<Occurrence>& occurrences) {
  std::vector<Place> places;
  places.reserve(occurrences.size());
  for (const Occurrence& occurrence : occurrences) places.push_back(as_place(occurrence));
  return places;
}

// The caller's index. Throws std::out_of_range if it is not in `[0, count)`.
std::int64_t checked(std::int64_t index, std::size_t count) {
  if (index < 0 || index >= static_cast<std::int64_t>(count))
    throw std::out_of_range("item " + std::to_string(index) + " does not exist, the number of items is " +
                            std::to_string(count));
  return index;
}

const PlannedItem& item_at(const StepPlan& plan, std::int64_t item) {
  return plan.items()[static_cast<std::size_t>(checked(item, plan.items().size()))];
}

std::optional<std::string> describe_misfit_of(const StepPlan& plan, std::int64_t item) {
  const PlannedItem& planned = item_at(plan, item);
  if (planned.fits) return std::nullopt;
  const auto [row_width, hidden] = plan.widths();
  const std::string message = "row_width is " + std::to_string(planned.row_width) + ", it must ";
  if (row_width % planned.row_width != 0)
    return message + "divide the cache's row_width, which is " + std::to_string(row_width);
  const std::string narrow = hidden == row_width ? "" : std::to_string(hidden) + " or ";
  return message + "be " + narrow + std::to_string(row_width) + ", the width of the destination's rows";
}

void bind_item_arrays(py::module_& module) {
  py::class_<ItemArrays>(module, "ItemArrays",
                         "The items of one request as arrays. The items must live as long as the arrays.")
      .def(py::init(&read_items), py::arg("items"), py::arg("item_type"))
      .def("__len__", &ItemArrays::size)
      .def(
          "within",
          [](const ItemArrays& arrays, const py::int_& start, const py::int_& stop) {
            const std::int64_t first_token = read_bounded(start);
            const auto [first, last] = arrays.find_spans(first_token, read_bounded(stop));
            std::vector<std::pair<std::int64_t, std::int64_t>> found;
            for (std::size_t i = first; i < last; ++i)
              if (const ItemSpan& span = arrays.spans()[i]; span.stop() > first_token)
                found.emplace_back(span.position, span.number);
            return found;
          },
          py::arg("start"), py::arg("stop"),
          "The spans that overlap tokens [start, stop), as (position of the item, number of the span).")
      .def(
          "set_computed",
          [](ItemArrays& arrays, std::int64_t position, const py::bytes& key_namespace,
             const py::bytes& key) {
            arrays.set_computed(checked(position, arrays.size()), key_namespace, read_key(key));
          },
          py::arg("position"), py::arg("key_namespace"), py::arg("key"),
          "Store the key that was computed for an item in a namespace, in place of an earlier one.")
      .def(
          "unfolded",
          [](const ItemArrays& arrays, const py::bytes& key_namespace) {
            std::vector<std::pair<std::int64_t, py::bytes>> found;
            for (const auto& [position, key] : arrays.unfolded(key_namespace))
              found.emplace_back(position, from_key(key));
            return found;
          },
          py::arg("key_namespace"),
          "The items into whose given keys the namespace is not folded yet, as (position, given key).")
      .def(
          "last_stop",
          [](const ItemArrays& arrays, std::int64_t position, const py::bytes& key_namespace) {
            return arrays.last_stop(checked(position, arrays.size()), key_namespace);
          },
          py::arg("position"), py::arg("key_namespace"),
          "The end of the last span of an item and of its equals.");
}

void bind_source_table(py::module_& module) {
  py::class_<SourceTable>(module, "SourceTable",
                          "Rows in device pages by key. The caller holds leases on the rows in the table.")
      .def(py::init<>())
      .def("__len__", &SourceTable::size)
      .def(
          "set",
          [](SourceTable& table, const py::bytes& key, const PagedRows& rows) {
            table.set(read_key(key), rows);
          },
          py::arg("key"), py::arg("rows"), "Enter the rows of a key, in place of earlier ones.")
      .def(
          "remove", [](SourceTable& table, const py::bytes& key) { return table.remove(read_key(key)); },
          py::arg("key"), "Remove the rows of a key. Return False if the table does not have the key.")
      .def("add_sources", &SourceTable::add_sources, py::arg("plan"), py::arg("placement"),
           py::arg("destination"),
           "Add the rows in the table to a placement of the plan. Return the items that Python must add.");
}

}  // namespace

void bind_pipeline(py::module_& module) {
  bind_item_arrays(module);
  module.def("read_requests", &read_requests, py::arg("chunks"), py::arg("chunk_type"));
  module.def("has_unfolded", &has_unfolded, py::arg("requests"), py::arg("key_namespace"));
  py::class_<StepPlan>(module, "StepPlan", "The unique items of one step, and their runs.")
      .def(py::init(&plan_chunks), py::arg("chunks"), py::arg("requests"), py::arg("key_namespace"),
           py::arg("num_tokens"), py::arg("row_width") = 0, py::arg("hidden") = 0)
      .def(
          "find",
          [](const StepPlan& plan, const py::bytes& key, std::int64_t num_rows,
             std::int64_t row_width) -> std::optional<std::size_t> {
            const Key wanted = read_key(key);
            for (std::size_t i = 0; i < plan.items().size(); ++i)
              if (plan.items()[i].has_key && plan.items()[i].key == wanted &&
                  plan.items()[i].num_rows == num_rows && plan.items()[i].row_width == row_width)
                return i;
            return std::nullopt;
          },
          py::arg("key"), py::arg("num_rows"), py::arg("row_width"),
          "The item with this key, number of rows and width of rows, or None.")
      .def("__len__", [](const StepPlan& plan) { return plan.items().size(); })
      .def(
          "make_placement",
          [](const StepPlan& plan) {
            Placement placement(true);
            placement.set_runs(plan.runs());
            return placement;
          },
          "A placement with the runs of the step, without sources. It accepts narrow rows.")
      .def_property_readonly("has_unkeyed", [](const StepPlan& plan) { return !plan.unkeyed().empty(); })
      .def("unkeyed", &StepPlan::unkeyed, "The items that have neither a key nor rows.")
      .def("given", &StepPlan::given, "The items that have precomputed rows.")
      .def(
          "set_key",
          [](StepPlan& plan, std::int64_t item, const py::bytes& key) {
            plan.set_key(checked(item, plan.items().size()), read_key(key));
          },
          py::arg("item"), py::arg("key"))
      .def("merge", &StepPlan::merge,
           "Merge items that became equal. Return the new index of each item, or [] if none were equal.")
      .def(
          "read_from_start",
          [](StepPlan& plan, const std::vector<std::int64_t>& items) {
            for (const std::int64_t item : items) checked(item, plan.items().size());
            plan.read_from_start(items);
          },
          py::arg("items"), "Let the runs of failed items read rows from 0 on.")
      .def(
          "key",
          [](const StepPlan& plan, std::int64_t item) -> std::optional<py::bytes> {
            const PlannedItem& planned = item_at(plan, item);
            if (!planned.has_key) return std::nullopt;
            return from_key(planned.key);
          },
          py::arg("item"))
      .def(
          "num_rows", [](const StepPlan& plan, std::int64_t item) { return item_at(plan, item).num_rows; },
          py::arg("item"))
      .def(
          "row_width", [](const StepPlan& plan, std::int64_t item) { return item_at(plan, item).row_width; },
          py::arg("item"))
      .def("misfit", &describe_misfit_of, py::arg("item"),
           "Why the step does not accept the width of an item's rows; None if it does.")
      .def(
          "stop",
          [](const StepPlan& plan, std::int64_t chunk) {
            return plan.stop(checked(chunk, plan.num_chunks()));
          },
          py::arg("chunk"), "The token of the prompt at which a chunk ends.")
      .def(
          "needed_rows",
          [](const StepPlan& plan, std::int64_t item) { return item_at(plan, item).needed_rows; },
          py::arg("item"))
      .def(
          "has_rows", [](const StepPlan& plan, std::int64_t item) { return item_at(plan, item).has_rows; },
          py::arg("item"))
      .def(
          "occurrence",
          [](const StepPlan& plan, std::int64_t item) {
            return as_place(plan.occurrence(checked(item, plan.items().size())));
          },
          py::arg("item"), "The first occurrence, as (chunk, position).")
      .def(
          "occurrences",
          [](const StepPlan& plan, std::int64_t item) {
            return as_places(plan.occurrences(checked(item, plan.items().size())));
          },
          py::arg("item"))
      .def(
          "duplicates",
          [](const StepPlan& plan, std::int64_t item) {
            return as_places(plan.duplicates(checked(item, plan.items().size())));
          },
          py::arg("item"), "The first occurrence of each further equal object.")
      .def("runs", [](const StepPlan& plan) {
        std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>> runs;
        runs.reserve(plan.runs().size());
        for (const Run& run : plan.runs())
          runs.emplace_back(run.item, run.start, run.length, run.source_start);
        return runs;
      });
  bind_source_table(module);
}

}  // namespace vitcache
