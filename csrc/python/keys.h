// Keys between Python and the core: bytes of length 32.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <vector>

#include "cache/key.h"

namespace vitcache {

inline bool is_key(pybind11::handle object) {
  return PyBytes_Check(object.ptr()) && PyBytes_GET_SIZE(object.ptr()) == static_cast<Py_ssize_t>(kKeyBytes);
}

// Python has checked the keys of its callers, so another object is a fault of this package.
inline Key key_of(pybind11::handle object) {
  if (!is_key(object)) throw std::invalid_argument("a key must be 32 bytes");
  return Key::from_bytes(PyBytes_AS_STRING(object.ptr()));
}

inline pybind11::bytes from_key(const Key& key) { return {key.bytes(), kKeyBytes}; }

inline pybind11::list from_keys(const std::vector<Key>& keys) {
  pybind11::list list;
  for (const Key& key : keys) list.append(from_key(key));
  return list;
}

}  // namespace vitcache
