// The last check of a call's addresses, before the call reads and writes them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "placement/destination.h"
#include "placement/placement.h"
#include "python/tensor_reader.h"
#include "runtime/byte_range.h"

namespace vitcache {

// Python objects that own the memory of a call: the tensor of each plane of its destination, and its items.
// Without `numbers`, `items` is a list of all items; else item `numbers[i]` of the placement is `items[i]`,
// and the caller keeps the memory of the other items.
struct Owners {
  pybind11::list planes;
  pybind11::object items;
  std::optional<std::vector<std::int64_t>> numbers;
};

// A call reads the address of each tensor once. Python code that runs afterwards, such as a signal handler or
// the `__index__` of a span, may resize the storage of a tensor or release a lease. So these functions check
// the addresses when no more Python code runs: all bytes must be inside of the tensor's storage as it is now.
//
// For plain tensors they run no Python code themselves, except under a mode of torch.
class MemoryCheck {
 public:
  // `no_subclass` returns a context manager in which torch does not call `__torch_function__` of a subclass.
  // `explain(name, tensor)` raises for a tensor whose elements are not inside of its storage.
  MemoryCheck(TensorReader reader, pybind11::object no_subclass, pybind11::object explain);

  // Throws ValueError or TypeError, naming the plane or the item, if bytes are outside of a storage, and
  // RuntimeError if a lease was released.
  void check(const Placement& placement, const Destination& destination, const Owners& owners) const;
  // The same for the ids of all tokens and for the weight.
  void check_text(const TextTokens& text, const Destination& destination, const pybind11::object& ids,
                  const pybind11::object& weight) const;
  void check_ids(const TextTokens& text, std::int64_t num_tokens, const pybind11::object& ids) const;

 private:
  void check_item(const Placement& placement, const Destination& destination, std::int64_t item,
                  const pybind11::object& object) const;
  // Whether a tensor's storage contains a range. None: the range is outside of the address space.
  bool is_inside(PyObject* tensor, const std::optional<ByteRange>& range) const;
  // Throws the error of a tensor that is not inside of its storage.
  [[noreturn]] void refuse(const std::string& name, const pybind11::object& tensor) const;
  ByteRange storage_of(PyObject* tensor) const;

  TensorReader reader_;
  pybind11::object no_subclass_;
  pybind11::object explain_;
};

}  // namespace vitcache
