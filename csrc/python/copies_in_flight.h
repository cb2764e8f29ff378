// The Python objects whose memory the copies of a ring access, oldest first.
//
// An object is kept from before its copy is queued, so that an interrupt of the calling thread cannot free
// the memory of a copy in flight. Dropped objects may run any Python code, also calls of the same ring.
//
// Thread rule: the GIL guards this object. Python runs other threads while a dropped object is freed.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <list>
#include <memory>

#include "ring/ticket.h"

namespace vitcache {

class __attribute__((visibility("hidden"))) CopiesInFlight {
 public:
  struct Copy {
    std::shared_ptr<Ticket> ticket;
    pybind11::object source;  // needed until the source was read
    pybind11::object
        destination;          // needed until the copy is complete; None: torch's allocator keeps the memory
    bool is_queueing = true;  // the ring may still add pieces
  };

  std::list<Copy>::iterator add(Copy copy) { return copies_.insert(copies_.end(), std::move(copy)); }

  // Drops the objects of the oldest copies, as long as the copies do not access them any more.
  void reap();

  // Number of copies that are not complete.
  std::size_t count() const;

 private:
  std::list<Copy> copies_;
};

}  // namespace vitcache
