// Reads the tensors, leases and spans that Python passes to a placement.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "placement/destination.h"
#include "placement/placement.h"
#include "placement/source.h"
#include "python/tensor_reader.h"

namespace vitcache {

// The fast path for items: adds leases, and, if torch has DLPack's exchange functions, plain tensors.
class ItemReader {
 public:
  ItemReader(pybind11::type lease_type, const TensorReader& tensors);

  // Makes items the sources of `placement`, from index `first` on: item `i` is source `i`. Stops at the first
  // item that it cannot add and returns its index; Python then converts that item or raises the error. If
  // all items were added, returns their number. A source must have the device of `destination`, and a width
  // that the placement takes.
  std::int64_t add(Placement& placement, const pybind11::list& items, std::int64_t first,
                   const Destination& destination) const;

  // Makes `rows` source `item` of `placement`, or returns false.
  bool set(Placement& placement, std::int64_t item, const pybind11::object& rows,
           const Destination& destination) const;

 private:
  bool set_tensor(Placement& placement, std::int64_t item, PyObject* tensor,
                  const Destination& destination) const;

  pybind11::type lease_type_;
  TensorReader tensors_;
};

// Adds a run per row of `table`: (start, length, source_start) of item 0, or (item, start, length,
// source_start).
void add_runs(Placement& placement, const pybind11::array_t<std::int64_t, pybind11::array::c_style>& table);

// Adds the runs of each item. An element of `spans` is an int (the first token of the whole item), a Span, or
// a list or tuple of Span.
void add_spans(Placement& placement, const pybind11::sequence& spans, const pybind11::type& span_type);

}  // namespace vitcache
