// Reads plain tensors through DLPack's exchange functions, if torch has them.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "placement/destination.h"
#include "python/dlpack.h"
#include "runtime/byte_range.h"

namespace vitcache {

// A plain tensor is a dense `torch.Tensor` or `torch.nn.Parameter`, not a subclass, whose values are those in
// memory. A method refuses any other tensor, and every tensor of torch 2.9: Python then reads the tensor
// or raises the error.
class TensorReader {
 public:
  TensorReader(pybind11::type tensor_type, pybind11::type parameter_type);

  bool is_plain(PyObject* object) const;

  // Describes a plain tensor. Returns false if it refuses the tensor.
  bool read(PyObject* object, dlpack::Tensor& tensor) const;

  // Describes the memory of a plain tensor, also if its values are the negated values in memory.
  bool read_memory(PyObject* object, dlpack::Tensor& tensor) const;

  // Whether `object` is a plain tensor whose elements are all inside of its storage. False, too, for a tensor
  // that DLPack cannot describe.
  bool is_inside_storage(const pybind11::object& object) const;

  // The destination of a plain tensor (T, H), or (B, T, H) that can be viewed as (B * T, H), of a supported
  // dtype. None for a refused tensor.
  std::optional<Destination> read_rows(const pybind11::object& rows) const;

  // The destination of a plain tensor (T, H), and of a plain tensor (T, H) of the same dtype and device per
  // deepstack level. None if a tensor is refused, or if two of them have overlapping memory. A single level
  // is refused, too, if it is not inside of its storage: torch cannot make views of it.
  std::optional<Destination> read_planes(const pybind11::object& rows, const pybind11::list& levels) const;

  // The destination of `read_rows` with packed deepstack levels: a contiguous plain tensor (L, N, H) of the
  // same dtype and device. None if a tensor is refused, if the memory of the two overlaps, or if the levels
  // are not inside of their storage.
  std::optional<Destination> read_packed(const pybind11::object& rows, const pybind11::object& levels) const;

  // Whether `object` is a plain tensor whose memory does not overlap that of a destination.
  bool is_apart(const Destination& destination, const pybind11::object& object) const;

  // The text tokens of plain tensors on one device: contiguous ids, and a weight (V, H) of a supported dtype.
  // None for refused tensors.
  std::optional<TextTokens> read_text(const pybind11::object& ids, const pybind11::object& weight) const;

 private:
  pybind11::type tensor_type_;
  pybind11::type parameter_type_;
  pybind11::object is_negated_;
  int (*tensor_from_object_)(void*, dlpack::Tensor*) = nullptr;
};

// The memory of a tensor's storage as it is now; an empty range if the storage has no memory. Runs no Python
// code for a plain tensor, except under a mode of torch.
ByteRange read_storage(PyObject* tensor);

}  // namespace vitcache
