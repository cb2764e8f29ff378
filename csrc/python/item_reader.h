// What Python passes to a placement, read: tensors, leases and spans.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "placement/placement.h"
#include "placement/source.h"
#include "python/dlpack.h"

namespace vitcache {

// The rows of a cache entry, made once, and what a destination must be to take them.
struct PagedRows {
  Source source;
  std::int64_t width;
  bool on_cuda;
  std::int32_t device_id;

  static PagedRows make(std::uintptr_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                        std::vector<std::int64_t> pages, std::int64_t page_rows, std::int64_t width,
                        bool on_cuda, std::int32_t device_id);
};

// Where rows go: what makes a source fit, or not.
struct Target {
  std::int64_t width;
  bool on_cuda;
  std::int32_t device_id;
};

// Takes in the items that need no words: plain tensors, through torch's DLPack functions where it has them,
// and leases.
//
// Of a lease it reads one attribute, `pin`, which `vitcache.Lease` documents: a list with the entry, whose
// `paged_rows` it takes, or an empty one once the lease is released.
class ItemReader {
 public:
  ItemReader(pybind11::type tensor_type, pybind11::type lease_type);

  // Adds to `placement` the items of `items` from `first` on, up to one that does not fit as it is; returns
  // its number. Python finds the words for that one, or another way.
  std::int64_t add(Placement& placement, const pybind11::list& items, std::int64_t first, std::int64_t width,
                   bool on_cuda, std::int32_t device_id) const;

 private:
  bool add_tensor(Placement& placement, PyObject* item, const Target& target) const;

  // Whether torch, which may put a sign off until memory is read, has put this one off.
  bool is_negated(PyObject* item) const;

  pybind11::type tensor_type_;
  pybind11::type lease_type_;
  pybind11::object is_negated_;
  int (*read_)(void*, dlpack::Tensor*) = nullptr;
};

// Rows of (start, length, source_start) of one source, or of (item, start, length, source_start).
void add_runs(Placement& placement, const pybind11::array_t<std::int64_t, pybind11::array::c_style>& table);

// Per item an int (first token of the whole item), a Span, or a list or tuple of them.
void add_spans(Placement& placement, const pybind11::sequence& spans, const pybind11::type& span_type);

}  // namespace vitcache
