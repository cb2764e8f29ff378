#include "python/module_watch.h"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

#include "python/bindings.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Interned names; they are never released, because the interpreter ends before static objects are destroyed.
struct Names {
  PyObject* version = PyUnicode_InternFromString("_version");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* is_meta = PyUnicode_InternFromString("is_meta");
  PyObject* is_inference = PyUnicode_InternFromString("is_inference");
  PyObject* tensor_flatten = PyUnicode_InternFromString("__tensor_flatten__");
};

const Names& names() {
  static const Names interned;
  return interned;
}

// `at::TensorBase::_version() const` of the torch that is loaded, or nullptr. The attribute `_version` takes
// ten times as long, because it converts arguments, warnings and the result.
std::int64_t (*version_function())(const void*) {
  void* const library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<std::int64_t (*)(const void*)>(dlsym(library, "_ZNK2at10TensorBase8_versionEv"));
}

// The number of a dict's last change. No two changes of dicts in a process have the same number. Python 3.13
// and later do not number them: 0.
std::uint64_t version_of_dict(PyObject* dict) {
#if PY_VERSION_HEX < 0x030D0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#pragma GCC diagnostic pop
#else
  static_cast<void>(dict);
  return 0;
#endif
}

py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Clears an error of class Exception: the tensor changed. Raises every other error, such as
// KeyboardInterrupt.
void clear_error() {
  if (PyErr_ExceptionMatches(PyExc_Exception) == 0) throw py::error_already_set();
  PyErr_Clear();
}

bool is_true(const py::object& value) { return value.ptr() == Py_True; }

bool is_number_or_text(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
         PyUnicode_CheckExact(value) || PyBytes_CheckExact(value) || PyComplex_CheckExact(value);
}

bool has_only_numbers_and_texts(PyObject* values) {
  for (const py::handle value : py::reinterpret_borrow<py::object>(values))
    if (!is_number_or_text(value.ptr())) return false;
  return true;
}

}  // namespace

ModuleWatch::ModuleWatch(const py::list& namespaces, const py::list& watched, py::list freed,
                         const py::dict& versions, const TensorReader& reader, py::type tensor_type,
                         std::uintptr_t data_pointer)
    : freed_(std::move(freed)),
      versions_(versions),
      reader_(reader),
      tensor_type_(std::move(tensor_type)),
      data_pointer_(reinterpret_cast<void* (*)(PyObject*)>(data_pointer)),
      version_(version_function()) {
  if (namespaces.size() != watched.size()) throw py::value_error("namespaces and watched differ in length");
  const py::tuple dicts(namespaces);
  for (std::size_t i = 0; i < dicts.size(); ++i) {
    const py::tuple pair = watched[i];
    const py::object chosen = pair[0];
    roots_.push_back(add_dict(dicts[i].ptr(), chosen.ptr(), pair[1].cast<bool>(), 0));
  }
  versions_ = py::dict();
}

std::uint32_t ModuleWatch::add_dict(PyObject* dict, PyObject* chosen, bool is_sized, int level) {
  std::vector<Entry> entries;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  // Read first: describing a value may run Python code, which may change the dict.
  const Py_ssize_t size = is_sized ? PyDict_GET_SIZE(dict) : -1;
  const std::uint64_t version = version_of_dict(dict);
  for (Py_ssize_t next = 0; PyDict_Next(dict, &next, &key, &value) != 0; position = next) {
    if (chosen != Py_None) {
      const int contains = PySet_Contains(chosen, key);
      if (contains < 0) throw py::error_already_set();
      if (contains == 0) continue;
    }
    const auto key_holder = py::reinterpret_borrow<py::object>(key);
    const auto value_holder = py::reinterpret_borrow<py::object>(value);
    entries.push_back(entry_of(key, value, position, level + 1));
  }
  return add_container(entries, size, version);
}

// `list`: a list or a tuple.
std::uint32_t ModuleWatch::add_list(PyObject* list, int level) {
  std::vector<Entry> entries;
  const py::tuple values(py::reinterpret_borrow<py::object>(list));
  for (const py::handle value : values) entries.push_back(entry_of(Py_None, value.ptr(), 0, level + 1));
  return add_container(entries, static_cast<Py_ssize_t>(values.size()), 0);
}

std::uint32_t ModuleWatch::add_container(std::vector<Entry>& entries, Py_ssize_t size,
                                         std::uint64_t version) {
  std::size_t num_read = entries.size();  // of a list, every element is compared
  if (version != 0) {
    const auto is_read = [](const Entry& entry) { return entry.kind > Kind::kNumberOrText; };
    const auto first_other = std::stable_partition(entries.begin(), entries.end(), is_read);
    num_read = static_cast<std::size_t>(first_other - entries.begin());
  }
  containers_.push_back({entries_.size(), entries.size(), num_read, size, version});
  entries_.insert(entries_.end(), entries.begin(), entries.end());
  return static_cast<std::uint32_t>(containers_.size() - 1);
}

ModuleWatch::Entry ModuleWatch::entry_of(PyObject* key, PyObject* value, Py_ssize_t position, int level) {
  Entry entry{key, value, position, 0, Kind::kIdentity};
  if (is_number_or_text(key)) kept_.push_back(py::reinterpret_borrow<py::object>(key));
  if (is_number_or_text(value) || (PyTuple_CheckExact(value) && has_only_numbers_and_texts(value))) {
    // Another number may get the address of a number that is freed.
    if (!PyTuple_CheckExact(value)) entry.kind = Kind::kNumberOrText;
    kept_.push_back(py::reinterpret_borrow<py::object>(value));
  } else if (PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(tensor_type_.ptr())) != 0) {
    entry.kind = Kind::kTensor;
    entry.number = add_tensor(value, level);
  } else if (level <= kMostLevels && PyDict_Check(value)) {
    entry.kind = Kind::kDict;
    entry.number = add_dict(value, Py_None, true, level);
  } else if (level <= kMostLevels && (PyList_Check(value) || PyTuple_Check(value))) {
    entry.kind = Kind::kList;
    entry.number = add_list(value, level);
  } else if (PyAnySet_Check(value) && has_only_numbers_and_texts(value)) {
    entry.kind = Kind::kSet;
    entry.number = static_cast<std::uint32_t>(sets_.size());
    sets_.push_back(checked(PyFrozenSet_New(value)));
  } else if ((PyNumber_Check(value) != 0 || PyUnicode_Check(value)) && PyObject_IS_GC(value) == 0) {
    kept_.push_back(py::reinterpret_borrow<py::object>(value));  // a number or text of another library
  }
  return entry;
}

std::uint32_t ModuleWatch::add_tensor(PyObject* tensor, int level) {
  Watched watched{};
  watched.is_plain = reader_.is_plain(tensor);
  watched.has_version = !is_true(checked(PyObject_GetAttr(tensor, names().is_meta))) &&
                        !is_true(checked(PyObject_CallMethodNoArgs(tensor, names().is_inference)));
  std::vector<Inner> inner;
  if (!watched.is_plain && PyObject_HasAttr(tensor, names().tensor_flatten) != 0) {
    const py::tuple flat = checked(PyObject_CallMethodNoArgs(tensor, names().tensor_flatten));
    for (const py::handle name : py::reinterpret_borrow<py::object>(flat[0])) {
      const py::object value = checked(PyObject_GetAttr(tensor, name.ptr()));
      // A subclass may make a new tensor at each access: the identity of such a tensor says nothing.
      if (value.ptr() != checked(PyObject_GetAttr(tensor, name.ptr())).ptr()) continue;
      if (level > kMostLevels || !py::isinstance(value, tensor_type_)) continue;
      kept_.push_back(py::reinterpret_borrow<py::object>(name));
      inner.push_back({name.ptr(), value.ptr(), add_tensor(value.ptr(), level + 1)});
    }
  }
  watched.first_inner = static_cast<std::uint32_t>(inner_.size());
  watched.num_inner = static_cast<std::uint32_t>(inner.size());
  inner_.insert(inner_.end(), inner.begin(), inner.end());
  watched.version = version_of(tensor, watched);
  const py::int_ id(reinterpret_cast<std::uintptr_t>(tensor));
  if (version_ != nullptr && watched.is_plain && watched.has_version && versions_.contains(id)) {
    watched.version_owner = reinterpret_cast<const void*>(versions_[id].cast<std::uintptr_t>());
    if (version_(&watched.version_owner) != watched.version) watched.version_owner = nullptr;
  }
  // A mode of torch may run Python code when an attribute or a method of a plain tensor is used.
  may_run_python_ = may_run_python_ || !watched.is_plain || data_pointer_ == nullptr ||
                    (watched.has_version && watched.version_owner == nullptr);
  watched.has_address = inner.empty();  // the wrapper of inner tensors has no memory
  try {
    if (watched.has_address) watched.address = address_of(tensor, watched.is_plain);
  } catch (py::error_already_set&) {
    throw;
  } catch (const std::exception&) {
    watched.has_address = false;  // for instance, a sparse tensor
  }
  tensors_.push_back(watched);
  return static_cast<std::uint32_t>(tensors_.size() - 1);
}

bool ModuleWatch::is_current(const py::list& namespaces) const {
  if (PyList_GET_SIZE(freed_.ptr()) != 0 || namespaces.size() != roots_.size()) return false;
  // Reading a subclass of tensors may run Python code, for instance the collector, which may empty the list.
  const py::tuple holder = may_run_python_ ? py::tuple(namespaces) : py::tuple();
  try {
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (namespaces.size() != roots_.size()) return false;
      PyObject* const dict = PyList_GET_ITEM(namespaces.ptr(), static_cast<Py_ssize_t>(i));
      if (!has_dict(dict, containers_[roots_[i]])) return false;
    }
  } catch (py::error_already_set&) {
    throw;
  } catch (const std::exception&) {
    return false;  // an error of torch, for instance of a tensor that has lost its storage
  }
  return true;
}

bool ModuleWatch::has_dict(PyObject* dict, const Container& expected) const {
  const auto holder = may_run_python_ ? py::reinterpret_borrow<py::object>(dict) : py::object();
  const Entry* const entries = entries_.data() + expected.first_entry;
  if (expected.version != 0 && !may_run_python_ && version_of_dict(dict) == expected.version) {
    for (std::size_t i = 0; i < expected.num_read; ++i)
      if (!has_value(entries[i])) return false;
    return true;
  }
  if (expected.size >= 0 && PyDict_GET_SIZE(dict) != expected.size) return false;
  for (std::size_t i = 0; i < expected.num_entries; ++i) {
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    Py_ssize_t position = entries[i].position;
    if (PyDict_Next(dict, &position, &key, &value) == 0) return false;
    if (key != entries[i].key) return false;
    if (value == entries[i].value ? !has_value(entries[i]) : !has_equal_value(entries[i], value))
      return false;
  }
  return true;
}

bool ModuleWatch::has_list(PyObject* list, const Container& expected) const {
  // A dict may get the address of a list that was freed.
  if (!PyList_Check(list) && !PyTuple_Check(list)) return false;
  const auto holder = may_run_python_ ? py::reinterpret_borrow<py::object>(list) : py::object();
  const Entry* const entries = entries_.data() + expected.first_entry;
  for (std::size_t i = 0; i < expected.num_entries; ++i) {
    if (PySequence_Fast_GET_SIZE(list) != expected.size) return false;
    PyObject* const value = PySequence_Fast_GET_ITEM(list, static_cast<Py_ssize_t>(i));
    if (value == entries[i].value ? !has_value(entries[i]) : !has_equal_value(entries[i], value))
      return false;
  }
  return PySequence_Fast_GET_SIZE(list) == expected.size;
}

// Whether another object in place of an entry's value is an equal setting.
bool ModuleWatch::has_equal_value(const Entry& entry, PyObject* value) const {
  if (entry.kind == Kind::kList) return has_list(value, containers_[entry.number]);
  if (entry.kind != Kind::kNumberOrText || Py_TYPE(value) != Py_TYPE(entry.value)) return false;
  const int is_equal = PyObject_RichCompareBool(value, entry.value, Py_EQ);
  if (is_equal < 0) throw py::error_already_set();
  return is_equal == 1;
}

bool ModuleWatch::has_value(const Entry& entry) const {
  switch (entry.kind) {
    case Kind::kIdentity:
    case Kind::kNumberOrText:
      return true;
    case Kind::kTensor:
      return has_state(entry.value, tensors_[entry.number]);
    case Kind::kDict:
      return has_dict(entry.value, containers_[entry.number]);
    case Kind::kList:
      return has_list(entry.value, containers_[entry.number]);
    case Kind::kSet: {
      const int is_equal = PyObject_RichCompareBool(entry.value, sets_[entry.number].ptr(), Py_EQ);
      if (is_equal < 0) throw py::error_already_set();
      return is_equal == 1;
    }
  }
  return false;
}

bool ModuleWatch::has_state(PyObject* tensor, const Watched& expected) const {
  const auto is_equal = [&] {
    return version_of(tensor, expected) == expected.version &&
           (!expected.has_address || address_of(tensor, expected.is_plain) == expected.address);
  };
  if (!may_run_python_) return is_equal();  // then every tensor is plain
  const auto holder = py::reinterpret_borrow<py::object>(tensor);
  if (!is_equal()) return false;
  for (std::uint32_t i = 0; i < expected.num_inner; ++i) {
    const Inner& inner = inner_[expected.first_inner + i];
    const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, inner.name));
    if (!value) clear_error();
    if (value.ptr() != inner.value || !has_state(value.ptr(), tensors_[inner.tensor])) return false;
  }
  return true;
}

std::int64_t ModuleWatch::version_of(PyObject* tensor, const Watched& watched) const {
  if (!watched.has_version) return -1;
  if (watched.version_owner != nullptr) return version_(&watched.version_owner);
  const auto version = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, names().version));
  // Without a version now, `.data` was set to an inference tensor: -1 differs from every version.
  const std::int64_t number = version ? PyLong_AsLongLong(version.ptr()) : -1;
  if (PyErr_Occurred() != nullptr) clear_error();
  return number;
}

std::uintptr_t ModuleWatch::address_of(PyObject* tensor, bool is_plain) const {
  if (is_plain && data_pointer_ != nullptr) return reinterpret_cast<std::uintptr_t>(data_pointer_(tensor));
  dlpack::Tensor memory{};
  if (is_plain && reader_.read_memory(tensor, memory))
    return reinterpret_cast<std::uintptr_t>(memory.data) + memory.byte_offset;
  const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, names().data_ptr));
  const std::uintptr_t number = address ? PyLong_AsSize_t(address.ptr()) : 0;
  if (PyErr_Occurred() != nullptr) clear_error();  // for instance, a sparse tensor has no data
  return number;
}

void bind_module_watch(py::module_& module) {
  py::class_<ModuleWatch>(module, "ModuleWatch")
      .def(py::init<const py::list&, const py::list&, py::list, const py::dict&, const TensorReader&,
                    py::type, std::uintptr_t>(),
           py::arg("namespaces"), py::arg("watched"), py::arg("freed"), py::arg("versions"),
           py::arg("reader"), py::arg("tensor_type"), py::arg("data_pointer"))
      .def("is_current", &ModuleWatch::is_current, py::arg("namespaces"));
}

}  // namespace vitcache
