// Reads the tensors, leases and spans that Python passes to a placement.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "placement/paged_rows.h"
#include "placement/placement.h"
#include "placement/source.h"
#include "python/dlpack.h"

namespace vitcache {

// The destination of rows. A source is accepted only if it has the same width and device.
struct Target {
  std::int64_t width;
  bool on_cuda;
  std::int32_t device_id;
};

// The fast path for items: adds leases, and, if torch has DLPack's exchange functions, plain tensors.
class ItemReader {
 public:
  ItemReader(pybind11::type tensor_type, pybind11::type lease_type);

  // Adds items to `placement`, from index `first` on. Stops at the first item that it cannot add and returns
  // its index; Python then converts that item or raises the error. If all items were added, returns their
  // number.
  std::int64_t add(Placement& placement, const pybind11::list& items, std::int64_t first, std::int64_t width,
                   bool on_cuda, std::int32_t device_id) const;

 private:
  bool add_tensor(Placement& placement, PyObject* item, const Target& target) const;

  // Whether the tensor has torch's negative bit: then its values are the negated values in memory.
  bool is_negated(PyObject* item) const;

  pybind11::type tensor_type_;
  pybind11::type lease_type_;
  pybind11::object is_negated_;
  int (*tensor_from_object_)(void*, dlpack::Tensor*) = nullptr;
};

// Adds a run per row of `table`: (start, length, source_start) of item 0, or (item, start, length,
// source_start).
void add_runs(Placement& placement, const pybind11::array_t<std::int64_t, pybind11::array::c_style>& table);

// Adds the runs of each item. An element of `spans` is an int (the first token of the whole item), a Span, or
// a list or tuple of Span.
void add_spans(Placement& placement, const pybind11::sequence& spans, const pybind11::type& span_type);

}  // namespace vitcache
