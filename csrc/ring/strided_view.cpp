#include "ring/strided_view.h"

#include <stdexcept>
#include <string>

namespace vitcache {

StridedView::StridedView(const std::byte* data, std::int64_t element_bytes,
                         const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides)
    : data_(data), element_bytes_(element_bytes) {
  if (shape.size() != strides.size())
    throw std::invalid_argument("expected one stride per size, got " + std::to_string(shape.size()) +
                                " sizes and " + std::to_string(strides.size()) + " strides");
  for (std::size_t i = 0; i < shape.size(); ++i)
    if (shape[i] < 0)
      throw std::invalid_argument("size " + std::to_string(i) + " is " + std::to_string(shape[i]) +
                                  ", it must be at least 0");
  const auto range = range_of(reinterpret_cast<std::uintptr_t>(data), element_bytes,
                              static_cast<std::int32_t>(shape.size()), shape.data(), strides.data(), 1);
  if (!range) throw std::invalid_argument("the elements of a view lie outside of the address space");
  range_ = *range;
  if (range_.empty()) {
    num_elements_ = 0;
    dimensions_.push_back({0, element_bytes});
    return;
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::int64_t size = shape[i];
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(num_elements_, size, &num_elements_) ||
        __builtin_mul_overflow(num_elements_, element_bytes, &bytes))
      throw std::invalid_argument(
          "the number of elements of a view, or of their bytes, has more than 64 bits");
    if (size == 1) continue;
    std::int64_t evenly = 0;  // the distance of the outer dimension's elements, if both are evenly spaced
    if (!dimensions_.empty() && !__builtin_mul_overflow(size, strides[i], &evenly) &&
        dimensions_.back().stride == evenly) {
      dimensions_.back().size *= size;
      dimensions_.back().stride = strides[i];
    } else {
      dimensions_.push_back({size, strides[i]});
    }
  }
  if (dimensions_.empty()) dimensions_.push_back({1, element_bytes});
}

}  // namespace vitcache
