// Notices changes of the parameters and buffers of modules, in one call without Python frames.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "python/tensor_reader.h"

namespace vitcache {

// The tables of parameters, buffers and children of modules, and the identity, version, address and dtype of
// the tensors in them, at one moment. It keeps references to the two lists, not to their elements: the owner
// of the lists empties them when a module is freed.
class TensorTables {
 public:
  // `namespaces`: the ``__dict__`` of each module. `tables`: the three tables of each module, in order.
  TensorTables(pybind11::list namespaces, pybind11::list tables, const TensorReader& reader,
               pybind11::type tensor_type);

  // Whether nothing has changed since. False may be a false alarm, also after the lists were emptied.
  bool is_current() const;

 private:
  struct State {
    std::int64_t version;  // -1: inference and meta tensors have no version
    std::uintptr_t address;
    std::uintptr_t dtype;
    bool operator==(const State& other) const {
      return version == other.version && address == other.address && dtype == other.dtype;
    }
  };

  struct Value {
    PyObject* identity;  // not owned: compared, and read only while it is in its table
    bool is_tensor;
    bool has_version;
    State state;
  };

  static bool has_same_tables(PyObject* module_namespace, const pybind11::tuple& tables,
                              std::size_t first_table);
  State read(PyObject* tensor, bool has_version) const;

  pybind11::list namespaces_;
  pybind11::list tables_;
  TensorReader reader_;
  std::vector<Value> values_;
  std::size_t num_namespaces_;
};

}  // namespace vitcache
