// The base of vitcache.Lease: a Python type that pins an entry of a ledger.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/ledger.h"

namespace vitcache {

// The streams that read the pages of leases. Few streams read, so a list is the fastest set.
class ReadStreams {
 public:
  bool contains(std::int64_t stream) const;
  // Work on the CPU is complete when the call returns, so it is not recorded.
  void add(std::int64_t stream);
  std::vector<std::int64_t> take() { return std::move(streams_); }
  const std::vector<std::int64_t>& list() const { return streams_; }

 private:
  std::vector<std::int64_t> streams_;
};

// A type written for Python's C API: a look-up makes a lease, and pybind11 needs half a microsecond more.
// A step has no object per lease at all (lease_set.h).
struct LeaseObject {
  PyObject_HEAD        // NOLINT: the macro of Python
      EntryPtr entry;  // null after the release
  std::weak_ptr<Ledger> ledger;
  PyObject* tier;  // vitcache.pages.lease.LeaseTier: shared by the leases of one tier
  ReadStreams streams;
  long long num_rows;
  long long row_width;
  long long hits;
};

// Returns a new instance of `type`, a subclass of LeaseBase, that releases `entry` when it is destroyed.
pybind11::object make_lease(pybind11::handle type, EntryPtr entry, const std::shared_ptr<Ledger>& ledger,
                            pybind11::handle tier);

// Returns null if `object` is not an instance of LeaseBase.
LeaseObject* as_lease(PyObject* object);

// Raises RuntimeError: the lease was released.
[[noreturn]] void refuse_released(const LeaseObject& lease);

void bind_lease(pybind11::module_& module);

}  // namespace vitcache
