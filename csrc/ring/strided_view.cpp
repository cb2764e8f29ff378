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
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::int64_t size = shape[i];
    if (size < 0)
      throw std::invalid_argument("size " + std::to_string(i) + " is " + std::to_string(size) +
                                  ", it must be at least 0");
    num_elements_ *= size;
    if (size == 1) continue;
    if (!dimensions_.empty() && dimensions_.back().stride == size * strides[i]) {
      dimensions_.back().size *= size;
      dimensions_.back().stride = strides[i];
    } else {
      dimensions_.push_back({size, strides[i]});
    }
  }
  if (dimensions_.empty()) dimensions_.push_back({1, element_bytes});
}

}  // namespace vitcache
