#include "python/tensor_reader.h"

#include <cstddef>
#include <cstdint>
#include <utility>

#include "python/dense_rows.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Interned names of methods. They are never released: the interpreter ends before static objects are
// destroyed.
struct Names {
  PyObject* untyped_storage = PyUnicode_InternFromString("untyped_storage");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
};

py::object call(PyObject* object, PyObject* name) {
  auto result = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, name));
  if (!result) throw py::error_already_set();
  return result;
}

}  // namespace

ByteRange read_storage(PyObject* tensor) {
  static const Names names;
  const py::object storage = call(tensor, names.untyped_storage);
  const std::uint64_t begin = PyLong_AsUnsignedLongLong(call(storage.ptr(), names.data_ptr).ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  const Py_ssize_t num_bytes = PyObject_Size(storage.ptr());
  if (num_bytes < 0) throw py::error_already_set();
  return {begin, begin == 0 ? 0 : begin + static_cast<std::uint64_t>(num_bytes)};
}

namespace {

// Whether a plain tensor is inside of its storage. A functional tensor has a storage without an address.
bool is_inside(PyObject* object, const dlpack::Tensor& tensor) {
  const auto bytes = bytes_of(tensor);
  if (!bytes || bytes->empty()) return bytes.has_value();
  try {
    return read_storage(object).contains(*bytes);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError)) throw;
    return false;
  }
}

}  // namespace

TensorReader::TensorReader(py::type tensor_type, py::type parameter_type)
    : tensor_type_(std::move(tensor_type)),
      parameter_type_(std::move(parameter_type)),
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

bool TensorReader::is_plain(PyObject* object) const {
  const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == tensor_type_.ptr() || type == parameter_type_.ptr();
}

bool TensorReader::read_memory(PyObject* object, dlpack::Tensor& tensor) const {
  if (tensor_from_object_ == nullptr || !is_plain(object)) return false;
  if (tensor_from_object_(object, &tensor) != 0) {
    PyErr_Clear();  // for example, a tensor without storage
    return false;
  }
  return true;
}

bool TensorReader::read(PyObject* object, dlpack::Tensor& tensor) const {
  if (!read_memory(object, tensor)) return false;
  // With torch's negative bit, the values are the negated values in memory.
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_negated_.ptr(), object));
  if (!negated) throw py::error_already_set();
  return negated.ptr() == Py_False;
}

bool TensorReader::is_inside_storage(const py::object& object) const {
  dlpack::Tensor tensor{};
  return read_memory(object.ptr(), tensor) && is_inside(object.ptr(), tensor);
}

std::optional<Destination> TensorReader::read_rows(const py::object& rows) const {
  dlpack::Tensor tensor{};
  return read(rows.ptr(), tensor) ? destination_of(tensor) : std::nullopt;
}

std::optional<Destination> TensorReader::read_planes(const py::object& rows, const py::list& levels) const {
  dlpack::Tensor tensor{};
  if (!read(rows.ptr(), tensor) || tensor.ndim != 2) return std::nullopt;
  std::optional<Destination> planes = destination_of(tensor);
  if (!planes) return std::nullopt;
  // Under a mode of torch, `read` runs Python code, which may change the list.
  for (std::size_t position = 0; position < levels.size(); ++position) {
    const py::object level = levels[position];
    if (!read(level.ptr(), tensor) || tensor.ndim != 2) return std::nullopt;
    const std::optional<Destination> plane = destination_of(tensor);
    if (!plane || plane->num_tokens != planes->num_tokens || plane->row_bytes != planes->row_bytes ||
        plane->kind != planes->kind || plane->on_cuda != planes->on_cuda ||
        plane->device_id != planes->device_id)
      return std::nullopt;
    const ByteRange range = plane->range(0);
    for (std::size_t index = 0; index < planes->planes.size(); ++index)
      if (!planes->range(index).is_apart(range)) return std::nullopt;
    if (levels.size() == 1 && !is_inside(level.ptr(), tensor)) return std::nullopt;
    planes->planes.push_back(plane->planes.front());
    planes->width += plane->width;
  }
  return planes;
}

std::optional<Destination> TensorReader::read_packed(const py::object& rows, const py::object& levels) const {
  dlpack::Tensor tensor{};
  std::optional<Destination> destination = read_rows(rows);
  if (!destination || !read(levels.ptr(), tensor) || !is_inside(levels.ptr(), tensor) ||
      !add_packed(tensor, *destination))
    return std::nullopt;
  return destination;
}

bool TensorReader::is_apart(const Destination& destination, const py::object& object) const {
  dlpack::Tensor tensor{};
  if (!read_memory(object.ptr(), tensor)) return false;
  const auto range = bytes_of(tensor);
  if (!range) return false;
  for (std::size_t index = 0; index < destination.planes.size(); ++index)
    if (!destination.range(index).is_apart(*range)) return false;
  return true;
}

std::optional<TextTokens> TensorReader::read_text(const py::object& ids, const py::object& weight) const {
  dlpack::Tensor tokens{}, rows{};
  if (!read(ids.ptr(), tokens) || !read(weight.ptr(), rows)) return std::nullopt;
  return text_of(tokens, rows);
}

}  // namespace vitcache
