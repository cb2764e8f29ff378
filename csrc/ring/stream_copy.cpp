#include "ring/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

// ThreadSanitizer does not see streaming stores, so its builds use memcpy.
#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
#include <emmintrin.h>

namespace vitcache {

void stream_copy(std::byte* destination, const std::byte* source, std::size_t bytes) {
  constexpr std::size_t vector = sizeof(__m128i);
  constexpr std::size_t unrolled = 4;
  const std::size_t head = std::min(bytes, -reinterpret_cast<std::uintptr_t>(destination) % vector);
  std::memcpy(destination, source, head);
  std::size_t offset = head;
  for (; offset + unrolled * vector <= bytes; offset += unrolled * vector) {
    __m128i values[unrolled];
    for (std::size_t i = 0; i < unrolled; ++i)
      values[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + offset + i * vector));
    for (std::size_t i = 0; i < unrolled; ++i)
      _mm_stream_si128(reinterpret_cast<__m128i*>(destination + offset + i * vector), values[i]);
  }
  std::memcpy(destination + offset, source + offset, bytes - offset);
}

void order_stores() { _mm_sfence(); }

}  // namespace vitcache

#else

namespace vitcache {

void stream_copy(std::byte* destination, const std::byte* source, std::size_t bytes) {
  std::memcpy(destination, source, bytes);
}

void order_stores() {}

}  // namespace vitcache

#endif
