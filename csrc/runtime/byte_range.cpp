#include "runtime/byte_range.h"

namespace vitcache {
namespace {

// The distances in bytes of the lowest and the highest element from the first one.
struct Reach {
  std::int64_t low = 0;
  std::int64_t high = 0;

  // Adds a dimension of `size` elements, at least 1. Returns false if a distance leaves 64 bits.
  bool extend(std::int64_t size, std::int64_t step) {
    std::int64_t distance = 0;
    if (__builtin_mul_overflow(size - 1, step, &distance)) return false;
    std::int64_t& end = distance < 0 ? low : high;
    return !__builtin_add_overflow(end, distance, &end);
  }

  std::optional<ByteRange> at(std::uint64_t address, std::int64_t element_bytes) const {
    ByteRange range{};
    if (__builtin_add_overflow(address, low, &range.begin) ||
        __builtin_add_overflow(address, high, &range.end) ||
        __builtin_add_overflow(range.end, element_bytes, &range.end))
      return std::nullopt;
    return range;
  }
};

}  // namespace

std::optional<ByteRange> range_of(std::uint64_t address, std::int64_t element_bytes, std::int32_t ndim,
                                  const std::int64_t* shape, const std::int64_t* strides,
                                  std::int64_t stride_bytes) {
  if (element_bytes < 0) return std::nullopt;
  bool is_empty = element_bytes == 0;
  for (std::int32_t dimension = 0; dimension < ndim; ++dimension) {
    if (shape[dimension] < 0) return std::nullopt;
    is_empty = is_empty || shape[dimension] == 0;
  }
  if (is_empty) return ByteRange{address, address};
  Reach reach;
  for (std::int32_t dimension = 0; dimension < ndim; ++dimension) {
    if (shape[dimension] == 1) continue;  // its stride may be any number
    std::int64_t step = 0;
    if (__builtin_mul_overflow(strides[dimension], stride_bytes, &step) ||
        !reach.extend(shape[dimension], step))
      return std::nullopt;
  }
  return reach.at(address, element_bytes);
}

std::optional<ByteRange> rows_range(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows,
                                    std::int64_t row_bytes) {
  if (num_rows < 0 || row_bytes < 0) return std::nullopt;
  if (num_rows == 0 || row_bytes == 0) return ByteRange{address, address};
  Reach reach;
  if (!reach.extend(num_rows, row_stride)) return std::nullopt;
  return reach.at(address, row_bytes);
}

}  // namespace vitcache
