// A view of elements in pageable memory: shape and strides as in NumPy. Adjacent dimensions are merged where
// their elements are evenly spaced.
//
// Thread rule: immutable. The view does not own the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/byte_range.h"

namespace vitcache {

struct Dimension {
  std::int64_t size;
  std::int64_t stride;  // bytes; may be 0 or negative
};

class StridedView {
 public:
  // Throws std::invalid_argument if `shape` and `strides` differ in length, if a size is negative, if the
  // number of elements or its bytes have more than 64 bits, or if an element lies outside of the address
  // space.
  StridedView(const std::byte* data, std::int64_t element_bytes, const std::vector<std::int64_t>& shape,
              const std::vector<std::int64_t>& strides);

  const std::byte* data() const { return data_; }
  std::int64_t element_bytes() const { return element_bytes_; }
  std::int64_t num_elements() const { return num_elements_; }

  // The bytes from the lowest to the highest element.
  const ByteRange& range() const { return range_; }

  // At least one dimension; the last one varies fastest. A dimension has size 1 only if it is the only
  // dimension.
  const std::vector<Dimension>& dimensions() const { return dimensions_; }

 private:
  const std::byte* data_;
  std::int64_t element_bytes_;
  std::int64_t num_elements_ = 1;
  ByteRange range_{};
  std::vector<Dimension> dimensions_;
};

}  // namespace vitcache
