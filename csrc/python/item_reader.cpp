#include "python/item_reader.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "python/lease.h"

namespace py = pybind11;

namespace vitcache {
namespace {

bool has_exact_type(PyObject* item, const py::type& type) {
  return Py_TYPE(item) == reinterpret_cast<PyTypeObject*>(type.ptr());
}

int kind_of(const dlpack::Tensor& tensor) {
  if (tensor.type_lanes != 1) return -1;
  if (tensor.type_code == dlpack::kBfloat && tensor.type_bits == 16) return kBfloat16;
  if (tensor.type_code != dlpack::kFloat) return -1;
  return tensor.type_bits == 32 ? kFloat32 : tensor.type_bits == 16 ? kFloat16 : -1;
}

bool add_lease(Placement& placement, PyObject* item, const Target& target) {
  const LeaseObject& lease = *as_lease(item);
  if (lease.entry == nullptr) return false;  // the lease was released
  const PagedRows& rows = lease.entry->rows;
  if (rows.width != target.width || rows.on_cuda != target.on_cuda || rows.device_id != target.device_id)
    return false;
  placement.add_source(rows.source);
  return true;
}

std::int64_t to_int64(std::int64_t item, py::handle value) {
  const std::int64_t number = PyLong_AsLongLong(value.ptr());
  if (number == -1 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw std::out_of_range("item " + std::to_string(item) + ": " + py::repr(value).cast<std::string>() +
                            " is beyond 64 bits");
  }
  return number;
}

}  // namespace

ItemReader::ItemReader(py::type tensor_type, py::type lease_type)
    : tensor_type_(std::move(tensor_type)),
      lease_type_(std::move(lease_type)),
      is_negated_(tensor_type_.attr("is_neg")) {
  constexpr const char* name = "__dlpack_c_exchange_api__";
  if (!py::hasattr(tensor_type_, name)) return;
  const py::object attribute = tensor_type_.attr(name);
  if (!PyCapsule_CheckExact(attribute.ptr())) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(attribute.ptr(), PyCapsule_GetName(attribute.ptr())));
  if (api == nullptr) throw py::error_already_set();
  if (api->major == 1) tensor_from_object_ = api->tensor_from_object;
}

std::int64_t ItemReader::add(Placement& placement, const py::list& items, std::int64_t first,
                             std::int64_t width, bool on_cuda, std::int32_t device_id) const {
  const Target target{width, on_cuda, device_id};
  const auto count = static_cast<std::int64_t>(items.size());
  for (; first < count; ++first) {
    PyObject* item = PyList_GET_ITEM(items.ptr(), first);
    const bool added = has_exact_type(item, lease_type_)
                           ? add_lease(placement, item, target)
                           : has_exact_type(item, tensor_type_) && add_tensor(placement, item, target);
    if (!added) break;
  }
  return first;
}

bool ItemReader::add_tensor(Placement& placement, PyObject* item, const Target& target) const {
  if (tensor_from_object_ == nullptr) return false;
  dlpack::Tensor tensor{};
  if (tensor_from_object_(item, &tensor) != 0) {
    PyErr_Clear();  // for example, a tensor without storage
    return false;
  }
  const int kind = kind_of(tensor);
  if (kind < 0 || tensor.ndim != 2 || tensor.shape[1] != target.width) return false;
  if (tensor.strides[1] != 1 && target.width > 1) return false;
  if (tensor.device_type != (target.on_cuda ? dlpack::kCuda : dlpack::kCpu)) return false;
  if (target.on_cuda && tensor.device_id != target.device_id) return false;
  if (is_negated(item)) return false;
  placement.add_source(Source::block(reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset,
                                     tensor.strides[0] * kElementBytes[kind], tensor.shape[0], kind, false));
  return true;
}

bool ItemReader::is_negated(PyObject* item) const {
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_negated_.ptr(), item));
  if (!negated) throw py::error_already_set();
  return negated.ptr() == Py_True;
}

void add_runs(Placement& placement, const py::array_t<std::int64_t, py::array::c_style>& table) {
  if (table.ndim() != 2 || (table.shape(1) != 3 && table.shape(1) != 4))
    throw std::invalid_argument("runs must be an array of shape (n, 3) or (n, 4)");
  const py::ssize_t columns = table.shape(1);
  const std::int64_t* row = table.data();
  for (py::ssize_t i = 0; i < table.shape(0); ++i, row += columns) {
    const std::int64_t* span = row + columns - 3;
    placement.add_run({columns == 4 ? row[0] : 0, span[0], span[1], span[2]});
  }
}

void add_spans(Placement& placement, const py::sequence& spans, const py::type& span_type) {
  const auto is_span = [&span_type](py::handle value) {
    return Py_TYPE(value.ptr()) == reinterpret_cast<PyTypeObject*>(span_type.ptr()) ||
           PyObject_IsInstance(value.ptr(), span_type.ptr()) == 1;
  };
  const auto add = [&placement](std::int64_t item, py::handle span) {
    PyObject* fields = span.ptr();
    if (PyTuple_GET_SIZE(fields) != 3)
      throw py::type_error("a Span must have 3 fields, it has " + std::to_string(PyTuple_GET_SIZE(fields)));
    placement.add_run({item, to_int64(item, PyTuple_GET_ITEM(fields, 0)),
                       to_int64(item, PyTuple_GET_ITEM(fields, 1)),
                       to_int64(item, PyTuple_GET_ITEM(fields, 2))});
  };
  const auto type_name = [](py::handle value) { return std::string(Py_TYPE(value.ptr())->tp_name); };
  std::int64_t item = 0;
  for (const py::handle item_spans : spans) {
    const std::string name = "item " + std::to_string(item);
    if (is_span(item_spans)) {
      add(item, item_spans);
    } else if (PyList_Check(item_spans.ptr()) || PyTuple_Check(item_spans.ptr())) {
      for (const py::handle span : item_spans) {
        if (!is_span(span))
          throw py::type_error(name + ": every span must be a Span, got " + type_name(span));
        add(item, span);
      }
    } else if (PyIndex_Check(item_spans.ptr())) {
      const auto start = py::reinterpret_steal<py::object>(PyNumber_Index(item_spans.ptr()));
      if (!start) throw py::error_already_set();
      placement.add_run({item, to_int64(item, start), placement.source_rows(item), 0});
    } else {
      throw py::type_error(name + ": spans must be an int, a Span or a list of Span, not " +
                           type_name(item_spans));
    }
    ++item;
  }
}

}  // namespace vitcache
