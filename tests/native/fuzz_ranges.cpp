// The bytes of strided memory, against sums in 128 bits and, for few elements, against each element's
// address.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "check.h"
#include "fuzz.h"
#include "runtime/byte_range.h"

namespace fuzz {
namespace {

using vitcache::ByteRange;
using Numbers = std::vector<std::int64_t>;

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMaxElements = 256;  // of tensors whose elements are visited one by one

bool fits_signed(Wide value) { return value >= -Wide{kMost} - 1 && value <= kMost; }
bool fits_address(Wide value) { return value >= 0 && value <= std::numeric_limits<std::uint64_t>::max(); }

// The range, or none if a distance has more than 64 bits or an address is outside of the address space.
std::optional<ByteRange> true_range(std::uint64_t address, Wide element_bytes, const Numbers& shape,
                                    const std::vector<Wide>& steps) {
  if (element_bytes < 0 ||
      std::any_of(shape.begin(), shape.end(), [](std::int64_t size) { return size < 0; }))
    return std::nullopt;
  if (element_bytes == 0 || std::count(shape.begin(), shape.end(), 0) > 0) return ByteRange{address, address};
  Wide low = 0, high = 0;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 1) continue;
    if (!fits_signed(steps[i])) return std::nullopt;
    const Wide distance = (shape[i] - 1) * steps[i];
    (distance < 0 ? low : high) += distance;
    if (!fits_signed(low) || !fits_signed(high)) return std::nullopt;
  }
  const Wide begin = address + low, end = address + high + element_bytes;
  if (!fits_address(begin) || !fits_address(address + high) || !fits_address(end)) return std::nullopt;
  return ByteRange{static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end)};
}

// Every element lies in the range, and one touches each of its ends.
void check_elements(std::uint64_t address, std::int64_t element_bytes, const Numbers& shape,
                    const std::vector<Wide>& steps, const ByteRange& range) {
  Wide num_elements = 1;
  for (const std::int64_t size : shape) num_elements *= std::min<std::int64_t>(size, kMaxElements + 1);
  if (num_elements > kMaxElements) return;
  if (num_elements == 0 || element_bytes == 0) {
    CHECK(range.empty());
    return;
  }
  Wide low = address, high = address;
  for (std::int64_t element = 0; element < num_elements; ++element) {
    Wide at = address;
    std::int64_t rest = element;
    for (std::size_t i = shape.size(); i-- > 0; rest /= shape[i]) at += rest % shape[i] * steps[i];
    low = std::min(low, at);
    high = std::max(high, at);
  }
  CHECK(low == range.begin);
  CHECK(high + element_bytes == range.end);
}

Verdict check(std::uint64_t address, std::int64_t element_bytes, const Numbers& shape,
              const std::vector<Wide>& steps, const std::optional<ByteRange>& range) {
  const std::optional<ByteRange> expected = true_range(address, element_bytes, shape, steps);
  CHECK_EQUAL(range.has_value(), expected.has_value());
  if (!range) return Verdict::kRefused;
  CHECK_EQUAL(range->begin, expected->begin);
  CHECK_EQUAL(range->end, expected->end);
  check_elements(address, element_bytes, shape, steps, *range);
  return Verdict::kAccepted;
}

std::uint64_t some_address(Random& random) {
  return random.one_in(4) ? random.bits() : static_cast<std::uint64_t>(random.number(1 << 20, 20));
}

}  // namespace

Verdict range_of_a_tensor(Random& random) {
  const std::uint64_t address = some_address(random);
  const std::int64_t element_bytes =
      random.one_in(30) ? random.number(8, 2) : random.pick<std::int64_t>({1, 2, 4, 8, 16});
  const std::int64_t stride_bytes = random.one_in(2) ? element_bytes : 1;
  Numbers shape, strides;
  std::vector<Wide> steps;
  for (std::int64_t ndim = random.up_to(4); ndim > 0; --ndim) {
    shape.push_back(random.number(5, 12));
    strides.push_back(random.one_in(4) ? -random.up_to(40) : random.number(40, 8));
    steps.push_back(Wide{strides.back()} * stride_bytes);
  }
  const auto range = vitcache::range_of(address, element_bytes, static_cast<std::int32_t>(shape.size()),
                                        shape.data(), strides.data(), stride_bytes);
  return check(address, element_bytes, shape, steps, range);
}

Verdict range_of_rows(Random& random) {
  const std::uint64_t address = some_address(random);
  const std::int64_t num_rows = random.number(20, 10), row_stride = random.number(64, 6),
                     row_bytes = random.number(64, 10);
  const auto range = vitcache::rows_range(address, row_stride, num_rows, row_bytes);
  return check(address, row_bytes, {num_rows}, {row_stride}, range);
}

}  // namespace fuzz
