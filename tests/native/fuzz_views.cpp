// Strided views of a block of memory, and fills from them, against a loop over single elements.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "check.h"
#include "fuzz.h"
#include "ring/fill.h"
#include "ring/strided_view.h"

namespace fuzz {
namespace {

using vitcache::StridedView;
using Numbers = std::vector<std::int64_t>;

constexpr std::int64_t kMaxElements = 2048;  // a fill of an expanded view is as long as its elements are many

const std::byte* element(const std::byte* data, const Numbers& shape, const Numbers& strides,
                         std::int64_t index) {
  for (std::size_t i = shape.size(); i-- > 0; index /= shape[i]) data += index % shape[i] * strides[i];
  return data;
}

// The source is a block of its own, and so is the destination: a sanitizer reports a byte outside of them.
void check_fill(Random& random, const StridedView& view, const std::byte* data, const Numbers& shape,
                const Numbers& strides) {
  const std::int64_t bytes = view.element_bytes();
  const std::int64_t first = random.up_to(view.num_elements()),
                     count = random.up_to(view.num_elements() - first);
  std::vector<std::byte> written(static_cast<std::size_t>(count * bytes));
  vitcache::fill(written.data(), view, first, count, vitcache::Cast::kNone);
  for (std::int64_t i = 0; i < count; ++i)
    CHECK(std::memcmp(written.data() + i * bytes, element(data, shape, strides, first + i),
                      static_cast<std::size_t>(bytes)) == 0);
  if (bytes != 4) return;
  std::vector<std::byte> cast(static_cast<std::size_t>(2 * count));
  vitcache::fill(cast.data(), view, first, count,
                 random.one_in(2) ? vitcache::Cast::kFloat32ToBfloat16 : vitcache::Cast::kFloat32ToFloat16);
}

void check_count(const StridedView& view, const Numbers& shape) {
  const bool is_empty = view.element_bytes() == 0 || std::count(shape.begin(), shape.end(), 0) > 0;
  Wide count = is_empty ? 0 : 1;
  for (const std::int64_t size : shape) {
    count *= size;
    CHECK(count <= std::numeric_limits<std::int64_t>::max());
  }
  CHECK(count == view.num_elements());
}

}  // namespace

// A view outside of its block counts as refused: the caller compares `range()` with the storage.
Verdict strided_view(Random& random) {
  std::vector<std::byte> memory(static_cast<std::size_t>(1 + random.up_to(600)));
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random.bits());
  const std::byte* const data = memory.data() + random.up_to(static_cast<std::int64_t>(memory.size()));
  const std::int64_t element_bytes =
      random.one_in(40) ? random.number(8, 2) : random.pick<std::int64_t>({1, 2, 3, 4, 8, 16});
  Numbers shape, strides;
  for (std::int64_t ndim = random.up_to(4); ndim > 0; --ndim) {
    shape.push_back(random.one_in(60) ? random.number(64, 1) : random.up_to(6));
    // Half of the strides are those of a contiguous array, or of one with a gap.
    const std::int64_t gap = random.one_in(2) ? 1 : random.up_to(6),
                       even = gap * std::clamp<std::int64_t>(element_bytes, 0, 16);
    strides.push_back(random.one_in(40) ? random.number(64, 1) : random.one_in(5) ? -even : even);
  }
  std::optional<StridedView> made;
  if (!is_accepted([&] { made.emplace(data, element_bytes, shape, strides); })) return Verdict::kRefused;
  const StridedView& view = *made;
  check_count(view, shape);
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  if (!vitcache::ByteRange{begin, begin + memory.size()}.contains(view.range())) return Verdict::kRefused;
  if (view.num_elements() <= kMaxElements) check_fill(random, view, data, shape, strides);
  return Verdict::kAccepted;
}

}  // namespace fuzz
