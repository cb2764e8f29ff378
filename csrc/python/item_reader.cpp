#include "python/item_reader.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "python/dense_rows.h"
#include "python/lease.h"

namespace py = pybind11;

namespace vitcache {
namespace {

bool has_exact_type(PyObject* item, const py::type& type) {
  return Py_TYPE(item) == reinterpret_cast<PyTypeObject*>(type.ptr());
}

bool set_lease(Placement& placement, std::int64_t item, PyObject* object, const Destination& destination) {
  const LeaseObject& lease = *as_lease(object);
  if (lease.entry == nullptr) return false;  // the lease was released
  const PagedRows& rows = lease.entry->rows;
  if (rows.on_cuda != destination.on_cuda || rows.device_id != destination.device_id) return false;
  return placement.fit_source(item, rows.source, rows.width, destination);
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

// A bool of Python, or a scalar of NumPy or torch whose dtype is bool: none of them counts tokens.
bool is_bool(const py::handle value) {
  if (PyLong_CheckExact(value.ptr())) return false;
  if (PyBool_Check(value.ptr())) return true;
  const std::string dtype = py::str(py::getattr(value, "dtype", py::str()));
  return dtype == "bool" || dtype == "torch.bool";
}

}  // namespace

ItemReader::ItemReader(py::type lease_type, const TensorReader& tensors)
    : lease_type_(std::move(lease_type)), tensors_(tensors) {}

std::int64_t ItemReader::add(Placement& placement, const py::list& items, std::int64_t first,
                             const Destination& destination) const {
  placement.resize_sources(static_cast<std::int64_t>(items.size()));
  // A mode of torch may run Python code in `set`, which changes the list: its size is read again for each
  // item, and the item is kept alive.
  for (; first < PyList_GET_SIZE(items.ptr()); ++first) {
    const auto item = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(items.ptr(), first));
    if (!set(placement, first, item, destination)) break;
  }
  return first;
}

bool ItemReader::set(Placement& placement, std::int64_t item, const py::object& rows,
                     const Destination& destination) const {
  if (!has_exact_type(rows.ptr(), lease_type_)) return set_tensor(placement, item, rows.ptr(), destination);
  return set_lease(placement, item, rows.ptr(), destination);
}

bool ItemReader::set_tensor(Placement& placement, std::int64_t item, PyObject* object,
                            const Destination& destination) const {
  dlpack::Tensor tensor{};
  if (!tensors_.read(object, tensor) || tensor.ndim != 2) return false;
  const auto rows = rows_of(tensor);
  if (!rows || rows->on_cuda != destination.on_cuda) return false;
  if (destination.on_cuda && rows->device_id != destination.device_id) return false;
  return placement.fit_source(
      item, Source::block(rows->address, rows->row_stride, rows->num_rows, rows->kind, false), rows->width,
      destination);
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
  // The `__class__` of any object can be Span: only a tuple has the fields that are read.
  const auto is_span = [&span_type](PyObject* value) {
    if (has_exact_type(value, span_type)) return true;
    const int is_instance = PyTuple_Check(value) == 0 ? 0 : PyObject_IsInstance(value, span_type.ptr());
    if (is_instance < 0) throw py::error_already_set();
    return is_instance == 1;
  };
  const auto add = [&placement](std::int64_t item, PyObject* fields) {
    if (PyTuple_GET_SIZE(fields) != 3)
      throw py::type_error("a Span must have 3 fields, it has " + std::to_string(PyTuple_GET_SIZE(fields)));
    placement.add_run({item, to_int64(item, PyTuple_GET_ITEM(fields, 0)),
                       to_int64(item, PyTuple_GET_ITEM(fields, 1)),
                       to_int64(item, PyTuple_GET_ITEM(fields, 2))});
  };
  const auto refuse = [](std::int64_t item, const char* expected, PyObject* value) {
    throw py::type_error("item " + std::to_string(item) + expected + Py_TYPE(value)->tp_name);
  };
  const auto add_start = [&](std::int64_t item, PyObject* value) {
    const auto start = py::reinterpret_steal<py::object>(is_bool(value) ? nullptr : PyNumber_Index(value));
    if (!start) {
      // A NumPy bool has an index that raises.
      if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_TypeError) == 0)
        throw py::error_already_set();
      PyErr_Clear();
      refuse(item, ": spans must be an int, a Span or a list of Span, not ", value);
    }
    if (item >= placement.num_sources()) throw std::invalid_argument("a start needs the rows of its item");
    placement.add_run({item, to_int64(item, start), placement.source_rows(item), 0});
  };
  // A check of a type, or a conversion to `int`, may run Python code that changes the lists: their sizes are
  // read again for each element, and the element is kept alive.
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(spans.ptr(), "spans must be a list"));
  if (!items) throw py::error_already_set();
  for (std::int64_t item = 0; item < PySequence_Fast_GET_SIZE(items.ptr()); ++item) {
    const auto entry = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items.ptr(), item));
    if (is_span(entry.ptr())) {
      add(item, entry.ptr());
    } else if (PyList_Check(entry.ptr()) || PyTuple_Check(entry.ptr())) {
      for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(entry.ptr()); ++i) {
        const auto span = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(entry.ptr(), i));
        if (!is_span(span.ptr())) refuse(item, ": every span must be a Span, got ", span.ptr());
        add(item, span.ptr());
      }
    } else if (PyIndex_Check(entry.ptr())) {
      add_start(item, entry.ptr());
    } else {
      refuse(item, ": spans must be an int, a Span or a list of Span, not ", entry.ptr());
    }
  }
}

}  // namespace vitcache
