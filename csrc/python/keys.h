// Keys between Python and the core: bytes of length 32.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cache/key.h"

namespace vitcache {

inline bool is_key(pybind11::handle object) {
  return PyBytes_Check(object.ptr()) && PyBytes_GET_SIZE(object.ptr()) == static_cast<Py_ssize_t>(kKeyBytes);
}

// Throws a TypeError if `object` is not bytes, and std::invalid_argument if it does not have 32 bytes.
inline Key read_key(pybind11::handle object) {
  if (PyBytes_Check(object.ptr()) == 0)
    throw pybind11::type_error(std::string("key must be bytes, got ") + Py_TYPE(object.ptr())->tp_name);
  if (!is_key(object))
    throw std::invalid_argument("key has " + std::to_string(PyBytes_GET_SIZE(object.ptr())) +
                                " bytes, it must have " + std::to_string(kKeyBytes));
  return Key::from_bytes(PyBytes_AS_STRING(object.ptr()));
}

// A digest of 32 bytes; empty bytes stand for zeros.
inline Key read_digest(const pybind11::bytes& bytes) {
  return PyBytes_GET_SIZE(bytes.ptr()) == 0 ? Key{} : read_key(bytes);
}

inline pybind11::bytes from_key(const Key& key) { return {key.bytes(), kKeyBytes}; }

inline pybind11::list from_keys(const std::vector<Key>& keys) {
  pybind11::list list;
  for (const Key& key : keys) list.append(from_key(key));
  return list;
}

}  // namespace vitcache
