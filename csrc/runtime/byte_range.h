// The bytes that strided memory covers, computed without overflow from numbers that a caller chose.
//
// Shapes and strides of an empty or expanded tensor may be any numbers of 64 bits, and so may those that a
// foreign object describes. Thread rule: immutable.
#pragma once

#include <cstdint>
#include <optional>

namespace vitcache {

// The bytes [begin, end). An empty range has begin == end: it is in every range, and apart from every range.
struct ByteRange {
  std::uint64_t begin;
  std::uint64_t end;

  bool empty() const { return begin == end; }
  bool contains(const ByteRange& other) const {
    return other.empty() || (begin <= other.begin && other.end <= end);
  }
  bool is_apart(const ByteRange& other) const {
    return empty() || other.empty() || end <= other.begin || other.end <= begin;
  }
};

// The bytes from the lowest to the highest element of a tensor whose first element is at `address`. `strides`
// count `stride_bytes`: an element's bytes in torch and DLPack, 1 in NumPy. They may be negative, and are not
// read if a size is 0: such a tensor has no bytes. None if a size is negative, if the distance of two
// elements has more than 64 bits, or if an element lies outside of the address space.
std::optional<ByteRange> range_of(std::uint64_t address, std::int64_t element_bytes, std::int32_t ndim,
                                  const std::int64_t* shape, const std::int64_t* strides,
                                  std::int64_t stride_bytes);

// The bytes of `num_rows` rows of `row_bytes` bytes, of which the first begins at `address` and each next one
// `row_stride` bytes behind. None as for `range_of`.
std::optional<ByteRange> rows_range(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows,
                                    std::int64_t row_bytes);

}  // namespace vitcache
