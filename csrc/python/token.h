// Python objects that the core keeps without knowing Python: events, futures, tensors and owners of claims.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

namespace vitcache {

// While a Mutation exists, no Python object that a token refers to is destroyed: its finalizer would run in
// the middle of a change of the core's state. The last Mutation destroys the objects that have lost their
// last token. Thread rule: the GIL is held.
class Mutation {
 public:
  Mutation();
  ~Mutation();
  Mutation(const Mutation&) = delete;
  Mutation& operator=(const Mutation&) = delete;
};

// Returns an owning, opaque reference; null for None. Two tokens are equal if they refer to one object.
std::shared_ptr<void> make_token(pybind11::handle object);

// Returns the object of a token; None for null.
pybind11::object object_of(const std::shared_ptr<void>& token);

}  // namespace vitcache
