#include "ring/fill.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ring/cast.h"
#include "ring/stream_copy.h"

namespace vitcache {
namespace {

constexpr std::int64_t kBlockElements = 4096;  // a block of this size stays in the L1 cache during its cast

// Copies `count` elements that are `stride` bytes apart to contiguous memory.
template <std::int64_t kBytes>
void gather(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i) std::memcpy(destination + i * kBytes, source + i * stride, kBytes);
}

void gather(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t stride,
            std::int64_t bytes) {
  switch (bytes) {
    case 1:
      return gather<1>(destination, source, count, stride);
    case 2:
      return gather<2>(destination, source, count, stride);
    case 4:
      return gather<4>(destination, source, count, stride);
    case 8:
      return gather<8>(destination, source, count, stride);
    case 16:
      return gather<16>(destination, source, count, stride);
    default:
      for (std::int64_t i = 0; i < count; ++i)
        std::memcpy(destination + i * bytes, source + i * stride, static_cast<std::size_t>(bytes));
  }
}

// Fills `destination` from `count` contiguous elements.
void fill_run(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t element_bytes,
              Cast cast) {
  if (cast == Cast::kNone)
    return stream_copy(destination, source, static_cast<std::size_t>(count * element_bytes));
  std::array<std::uint16_t, kBlockElements> block;
  for (std::int64_t begin = 0; begin < count; begin += kBlockElements) {
    const std::int64_t size = std::min(kBlockElements, count - begin);
    if (cast == Cast::kFloat32ToBfloat16)
      cast_to_bfloat16(block.data(), source + begin * element_bytes, size);
    else
      cast_to_float16(block.data(), source + begin * element_bytes, size);
    stream_copy(destination + begin * 2, reinterpret_cast<const std::byte*>(block.data()),
                static_cast<std::size_t>(size * 2));
  }
}

// Fills `destination` from `count` elements that are `stride` bytes apart.
void fill_strided(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t stride,
                  std::int64_t element_bytes, Cast cast) {
  if (stride == element_bytes) return fill_run(destination, source, count, element_bytes, cast);
  if (cast == Cast::kNone) return gather(destination, source, count, stride, element_bytes);
  std::array<std::uint32_t, kBlockElements> block;
  for (std::int64_t begin = 0; begin < count; begin += kBlockElements) {
    const std::int64_t size = std::min(kBlockElements, count - begin);
    auto* gathered = reinterpret_cast<std::byte*>(block.data());
    gather<4>(gathered, source + begin * stride, size, stride);
    fill_run(destination + begin * 2, gathered, size, element_bytes, cast);
  }
}

// The address of element `index`, and the number of elements from it to the end of the last dimension.
std::pair<const std::byte*, std::int64_t> locate(const StridedView& view, std::int64_t index) {
  const std::byte* address = view.data();
  const auto& dimensions = view.dimensions();
  std::int64_t remaining = 0;
  for (auto dimension = dimensions.rbegin(); dimension != dimensions.rend(); ++dimension) {
    const std::int64_t position = index % dimension->size;
    if (dimension == dimensions.rbegin()) remaining = dimension->size - position;
    address += position * dimension->stride;
    index /= dimension->size;
  }
  return {address, remaining};
}

}  // namespace

std::int64_t cast_bytes(Cast cast, std::int64_t element_bytes) {
  if (cast == Cast::kNone) return element_bytes;
  if (element_bytes != 4)
    throw std::invalid_argument("a cast expects float32 elements of 4 bytes, got elements of " +
                                std::to_string(element_bytes) + " bytes");
  return 2;
}

void fill(std::byte* destination, const StridedView& source, std::int64_t first, std::int64_t count,
          Cast cast) {
  const std::int64_t element_bytes = source.element_bytes();
  const std::int64_t written_bytes = cast_bytes(cast, element_bytes);
  const std::int64_t stride = source.dimensions().back().stride;
  for (std::int64_t filled = 0; filled < count;) {
    const auto [address, remaining] = locate(source, first + filled);
    const std::int64_t length = std::min(remaining, count - filled);
    fill_strided(destination + filled * written_bytes, address, length, stride, element_bytes, cast);
    filled += length;
  }
  order_stores();
}

}  // namespace vitcache
