#include "python/tensor_tables.h"

#include <utility>

#include "python/bindings.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace vitcache {
namespace {

constexpr std::size_t kTablesPerModule = 3;

// Interned names; they are never released, because the interpreter ends before static objects are destroyed.
struct Names {
  PyObject* tables[kTablesPerModule] = {PyUnicode_InternFromString("_parameters"),
                                        PyUnicode_InternFromString("_buffers"),
                                        PyUnicode_InternFromString("_modules")};
  PyObject* version = PyUnicode_InternFromString("_version");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_meta = PyUnicode_InternFromString("is_meta");
  PyObject* is_inference = PyUnicode_InternFromString("is_inference");
};

const Names& names() {
  static const Names interned;
  return interned;
}

py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool is_true(const py::object& value) { return value.ptr() == Py_True; }

}  // namespace

TensorTables::TensorTables(py::list namespaces, py::list tables, const TensorReader& reader,
                           py::type tensor_type)
    : namespaces_(std::move(namespaces)),
      tables_(std::move(tables)),
      reader_(reader),
      num_namespaces_(namespaces_.size()) {
  for (const py::handle table : tables_) {
    for (const auto& [name, value] : py::reinterpret_borrow<py::dict>(table)) {
      const bool is_tensor = py::isinstance(value, tensor_type);
      const bool has_version =
          is_tensor && !is_true(checked(PyObject_GetAttr(value.ptr(), names().is_meta))) &&
          !is_true(checked(PyObject_CallMethodNoArgs(value.ptr(), names().is_inference)));
      values_.push_back(
          {value.ptr(), is_tensor, has_version, is_tensor ? read(value.ptr(), has_version) : State{}});
    }
  }
}

bool TensorTables::is_current() const {
  // Reading a tensor may run Python code, for instance the collector, which may empty the lists.
  const py::tuple namespaces(namespaces_);
  const py::tuple tables(tables_);
  if (namespaces.size() != num_namespaces_ || tables.size() != kTablesPerModule * num_namespaces_)
    return false;
  auto expected = values_.begin();
  for (std::size_t module = 0; module < num_namespaces_; ++module) {
    if (!has_same_tables(PyTuple_GET_ITEM(namespaces.ptr(), static_cast<Py_ssize_t>(module)), tables,
                         kTablesPerModule * module))
      return false;
    for (std::size_t i = 0; i < kTablesPerModule; ++i) {
      PyObject* const table =
          PyTuple_GET_ITEM(tables.ptr(), static_cast<Py_ssize_t>(kTablesPerModule * module + i));
      PyObject* value = nullptr;
      for (Py_ssize_t position = 0; PyDict_Next(table, &position, nullptr, &value) != 0; ++expected) {
        if (expected == values_.end() || expected->identity != value) return false;
        if (!expected->is_tensor) continue;
        const auto tensor = py::reinterpret_borrow<py::object>(value);
        if (!(read(tensor.ptr(), expected->has_version) == expected->state)) return false;
      }
    }
  }
  return expected == values_.end();
}

bool TensorTables::has_same_tables(PyObject* module_namespace, const py::tuple& tables,
                                   std::size_t first_table) {
  for (std::size_t i = 0; i < kTablesPerModule; ++i) {
    PyObject* const table = PyDict_GetItemWithError(module_namespace, names().tables[i]);
    if (table == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (table != PyTuple_GET_ITEM(tables.ptr(), static_cast<Py_ssize_t>(first_table + i))) return false;
  }
  return true;
}

TensorTables::State TensorTables::read(PyObject* tensor, bool has_version) const {
  State state{-1, 0, 0};
  if (has_version) {
    const auto version = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, names().version));
    // Without a version now, `.data` was set to an inference tensor: -1 differs from every version.
    if (version)
      state.version = PyLong_AsLongLong(version.ptr());
    else
      PyErr_Clear();
  }
  dlpack::Tensor memory{};
  if (reader_.read_memory(tensor, memory)) {
    state.address = reinterpret_cast<std::uintptr_t>(memory.data) + memory.byte_offset;
    state.dtype =
        memory.type_code | std::uintptr_t{memory.type_bits} << 8 | std::uintptr_t{memory.type_lanes} << 16;
    return state;
  }
  state.address = PyLong_AsSize_t(checked(PyObject_CallMethodNoArgs(tensor, names().data_ptr)).ptr());
  state.dtype = reinterpret_cast<std::uintptr_t>(checked(PyObject_GetAttr(tensor, names().dtype)).ptr());
  return state;
}

void bind_tensor_tables(py::module_& module) {
  py::class_<TensorTables>(module, "TensorTables")
      .def(py::init<py::list, py::list, const TensorReader&, py::type>(), py::arg("namespaces"),
           py::arg("tables"), py::arg("reader"), py::arg("tensor_type"))
      .def("is_current", &TensorTables::is_current);
}

}  // namespace vitcache
