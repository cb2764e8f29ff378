#include "python/memory_check.h"

#include <cstddef>
#include <utility>

#include "python/lease.h"

namespace py = pybind11;

namespace vitcache {
namespace {

std::string name_of(std::int64_t item) { return "item " + std::to_string(item); }

}  // namespace

MemoryCheck::MemoryCheck(TensorReader reader, py::object no_subclass, py::object explain)
    : reader_(std::move(reader)), no_subclass_(std::move(no_subclass)), explain_(std::move(explain)) {}

void MemoryCheck::check(const Placement& placement, const Destination& destination,
                        const Owners& owners) const {
  for (std::size_t index = 0; index < destination.planes.size(); ++index) {
    if (index >= owners.planes.size()) throw std::invalid_argument("a plane has no tensor");
    const py::object plane = owners.planes[index];
    if (!is_inside(plane.ptr(), destination.range(index)))
      refuse(index == 0 ? "the destination" : "deepstack level " + std::to_string(index - 1), plane);
  }
  if (owners.numbers && owners.numbers->empty()) return;
  const auto items = owners.items.cast<py::list>();
  const std::size_t count =
      owners.numbers ? owners.numbers->size() : static_cast<std::size_t>(placement.num_sources());
  if (items.size() != count) throw std::invalid_argument("the items of a placement were changed");
  for (std::size_t index = 0; index < count; ++index) {
    const std::int64_t item = owners.numbers ? (*owners.numbers)[index] : static_cast<std::int64_t>(index);
    const py::object object = items[index];
    check_item(placement, destination, item, object);
  }
}

void MemoryCheck::check_item(const Placement& placement, const Destination& destination, std::int64_t item,
                             const py::object& object) const {
  if (const LeaseObject* const lease = as_lease(object.ptr())) {
    if (lease->entry == nullptr)
      throw std::runtime_error(name_of(item) + ": its lease of " + std::to_string(lease->num_rows) +
                               " rows was released");
    return;
  }
  const Source& source = placement.sources().at(static_cast<std::size_t>(item));
  if (source.pages != nullptr) return;  // a reservation, whose pages stay in memory
  const std::int64_t width = source.narrow ? destination.hidden() : destination.width;
  if (!is_inside(object.ptr(), source.range(width * kElementBytes[source.kind])))
    refuse(name_of(item), object);
}

void MemoryCheck::check_text(const TextTokens& text, const Destination& destination, const py::object& ids,
                             const py::object& weight) const {
  check_ids(text, destination.num_tokens, ids);
  const std::optional<ByteRange> rows =
      rows_range(reinterpret_cast<std::uintptr_t>(text.weight), text.row_stride, text.num_embeddings,
                 destination.hidden() * kElementBytes[text.kind]);
  if (!is_inside(weight.ptr(), rows)) refuse("weight", weight);
}

void MemoryCheck::check_ids(const TextTokens& text, std::int64_t num_tokens, const py::object& ids) const {
  const std::optional<ByteRange> range =
      rows_range(reinterpret_cast<std::uintptr_t>(text.ids), text.id_bytes, num_tokens, text.id_bytes);
  if (!is_inside(ids.ptr(), range)) refuse("input_ids", ids);
}

bool MemoryCheck::is_inside(PyObject* tensor, const std::optional<ByteRange>& range) const {
  if (!range || range->empty()) return range.has_value();
  try {
    return storage_of(tensor).contains(*range);
  } catch (py::error_already_set& error) {
    // A fake tensor has no address. `refuse` raises the error of the caller's mistake.
    if (!error.matches(PyExc_RuntimeError)) throw;
    return false;
  }
}

void MemoryCheck::refuse(const std::string& name, const py::object& tensor) const {
  explain_(name, tensor);
  throw py::value_error(name + " is a tensor whose storage was resized or replaced during the call");
}

ByteRange MemoryCheck::storage_of(PyObject* tensor) const {
  if (reader_.is_plain(tensor)) return read_storage(tensor);
  const py::object guard = no_subclass_();
  guard.attr("__enter__")();
  try {
    const ByteRange range = read_storage(tensor);
    guard.attr("__exit__")(py::none(), py::none(), py::none());
    return range;
  } catch (...) {
    guard.attr("__exit__")(py::none(), py::none(), py::none());
    throw;
  }
}

}  // namespace vitcache
