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

constexpr std::int64_t kBlockElements = 4096;  // of a cast, that it stays in the first cache

// `count` elements, `stride` bytes apart, next to each other.
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

// `count` elements that lie side by side.
void fill_run(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t element_bytes,
              Cast cast) {
  if (cast == Cast::kNone)
    return stream_copy(destination, source, static_cast<std::size_t>(count * element_bytes));
  std::array<std::uint16_t, kBlockElements> block;
  for (std::int64_t done = 0; done < count; done += kBlockElements) {
    const std::int64_t size = std::min(kBlockElements, count - done);
    if (cast == Cast::kFloat32ToBfloat16)
      cast_to_bfloat16(block.data(), source + done * element_bytes, size);
    else
      cast_to_float16(block.data(), source + done * element_bytes, size);
    stream_copy(destination + done * 2, reinterpret_cast<const std::byte*>(block.data()),
                static_cast<std::size_t>(size * 2));
  }
}

// `count` elements, `stride` bytes apart.
void fill_strided(std::byte* destination, const std::byte* source, std::int64_t count, std::int64_t stride,
                  std::int64_t element_bytes, Cast cast) {
  if (stride == element_bytes) return fill_run(destination, source, count, element_bytes, cast);
  if (cast == Cast::kNone) return gather(destination, source, count, stride, element_bytes);
  std::array<std::uint32_t, kBlockElements> block;
  for (std::int64_t done = 0; done < count; done += kBlockElements) {
    const std::int64_t size = std::min(kBlockElements, count - done);
    auto* gathered = reinterpret_cast<std::byte*>(block.data());
    gather<4>(gathered, source + done * stride, size, stride);
    fill_run(destination + done * 2, gathered, size, element_bytes, cast);
  }
}

// Where element `index` lies, and how many follow it along the last dimension.
std::pair<const std::byte*, std::int64_t> locate(const StridedView& view, std::int64_t index) {
  const std::byte* at = view.data();
  const auto& dimensions = view.dimensions();
  std::int64_t left = 0;
  for (auto dimension = dimensions.rbegin(); dimension != dimensions.rend(); ++dimension) {
    const std::int64_t step = index % dimension->size;
    if (dimension == dimensions.rbegin()) left = dimension->size - step;
    at += step * dimension->stride;
    index /= dimension->size;
  }
  return {at, left};
}

}  // namespace

std::int64_t cast_bytes(Cast cast, std::int64_t element_bytes) {
  if (cast == Cast::kNone) return element_bytes;
  if (element_bytes != 4)
    throw std::invalid_argument("elements of " + std::to_string(element_bytes) +
                                " bytes cannot be cast, those of float32 have 4");
  return 2;
}

void fill(std::byte* destination, const StridedView& source, std::int64_t first, std::int64_t count,
          Cast cast) {
  const std::int64_t element_bytes = source.element_bytes();
  const std::int64_t written_bytes = cast_bytes(cast, element_bytes);
  const std::int64_t stride = source.dimensions().back().stride;
  for (std::int64_t done = 0; done < count;) {
    const auto [at, left] = locate(source, first + done);
    const std::int64_t length = std::min(left, count - done);
    fill_strided(destination + done * written_bytes, at, length, stride, element_bytes, cast);
    done += length;
  }
  order_stores();
}

}  // namespace vitcache
