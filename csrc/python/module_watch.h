// Notices changes of modules: of their parameters, buffers, children, hooks and settings, in one call without
// Python frames.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "python/tensor_reader.h"

namespace vitcache {

// The values of chosen names in dicts, such as the ``__dict__`` of modules, at one moment. Values that are
// dicts, lists, tuples and sets are watched with their elements. Of a tensor, the version and the address are
// watched, and those of the inner tensors of a subclass with ``__tensor_flatten__``.
//
// A watch keeps numbers and strings alive, and no other value: an object is compared by its identity, and
// read only while its container has it. The owner keeps the dicts, and the settings that are other values,
// because the garbage collector does not see references that a native object has, and a dict of a module
// leads back to the watch.
class ModuleWatch {
 public:
  // `namespaces`: the dicts.
  // `watched`: for each dict a pair: a set of names, or None for all of them; and whether the number of its
  // entries is watched, too.
  // `freed`: a list to which the owner appends when an object is freed that the watch cannot recognize.
  // `versions`: by the id of a tensor, the address of a `TensorImpl` that shares its version counter.
  // `data_pointer`: the address of torch's C function that returns the address of a tensor's data, or 0.
  ModuleWatch(const pybind11::list& namespaces, const pybind11::list& watched, pybind11::list freed,
              const pybind11::dict& versions, const TensorReader& reader, pybind11::type tensor_type,
              std::uintptr_t data_pointer);

  // Whether nothing has changed since. False may be a false alarm, also if `namespaces`, the same list, was
  // emptied.
  bool is_current(const pybind11::list& namespaces) const;

 private:
  enum class Kind : std::uint8_t { kIdentity, kNumberOrText, kTensor, kDict, kList, kSet };

  struct Entry {
    PyObject* key;    // not owned
    PyObject* value;  // owned by `kept_` if it is a number or text; else read only while its container has it
    Py_ssize_t position;   // of PyDict_Next
    std::uint32_t number;  // of the tensor, the container or the set
    Kind kind;
  };

  // The entries with values that are read come first; of the other ones, the identity is all.
  struct Container {
    std::size_t first_entry;
    std::size_t num_entries;
    std::size_t num_read;
    Py_ssize_t size;        // -1: not watched
    std::uint64_t version;  // of a dict; 0: this Python has none
  };

  struct Watched {
    const void* version_owner;  // nullptr: the attribute `_version` is read
    std::int64_t version;
    std::uintptr_t address;
    std::uint32_t first_inner;
    std::uint32_t num_inner;
    bool is_plain;  // a dense `torch.Tensor` or `torch.nn.Parameter`
    bool has_version;
    bool has_address;
  };

  struct Inner {
    PyObject* name;  // owned by `kept_`
    PyObject* value;
    std::uint32_t tensor;
  };

  static constexpr int kMostLevels = 8;  // of containers in containers, so that a circle of them ends

  std::uint32_t add_dict(PyObject* dict, PyObject* names, bool is_sized, int level);
  std::uint32_t add_list(PyObject* list, int level);
  std::uint32_t add_container(std::vector<Entry>& entries, Py_ssize_t size, std::uint64_t version);
  std::uint32_t add_tensor(PyObject* tensor, int level);
  Entry entry_of(PyObject* key, PyObject* value, Py_ssize_t position, int level);

  bool has_dict(PyObject* dict, const Container& expected) const;
  bool has_list(PyObject* list, const Container& expected) const;
  bool has_value(const Entry& entry) const;
  bool has_equal_value(const Entry& entry, PyObject* value) const;
  bool has_state(PyObject* tensor, const Watched& expected) const;
  std::int64_t version_of(PyObject* tensor, const Watched& watched) const;
  std::uintptr_t address_of(PyObject* tensor, bool is_plain) const;

  pybind11::list freed_;
  pybind11::dict versions_;
  TensorReader reader_;
  pybind11::type tensor_type_;
  void* (*data_pointer_)(PyObject*);
  std::int64_t (*version_)(const void* tensor) = nullptr;
  std::vector<Entry> entries_;
  std::vector<Container> containers_;
  std::vector<Watched> tensors_;
  std::vector<Inner> inner_;
  std::vector<std::uint32_t> roots_;  // the container of each namespace
  std::vector<pybind11::object> sets_;
  std::vector<pybind11::object> kept_;
  bool may_run_python_ = false;
};

}  // namespace vitcache
