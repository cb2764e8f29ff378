#include "ring/cast.h"

#include <cstring>

// Sanitizer builds do not use target_clones: its resolvers run before the sanitizers are initialized.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define VITCACHE_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VITCACHE_VECTORISED
#endif

namespace vitcache {
namespace {

inline std::uint32_t load(const std::uint32_t* source, std::int64_t index) {
  std::uint32_t bits;
  std::memcpy(&bits, source + index, sizeof bits);
  return bits;
}

inline std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t mask = condition ? ~0U : 0U;
  return (yes & mask) | (no & ~mask);
}

inline std::uint16_t to_bfloat16(std::uint32_t bits) {
  const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  return static_cast<std::uint16_t>(select((bits & 0x7FFFFFFFU) > 0x7F800000U, 0x7FC0U, rounded));
}

// A value that is normal in float16 is shifted and rounded as an integer. A value that is subnormal in
// float16 is rounded by the addition of 0.5F: the last bit of that sum has the same weight as float16's last
// bit.
inline std::uint16_t to_float16(std::uint32_t bits) {
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t normal = (magnitude - (112U << 23) + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value += 0.5F;  // the last bit of a float in [0.5, 1) is 2^-24, float16's smallest subnormal
  std::uint32_t shifted;
  std::memcpy(&shifted, &value, sizeof shifted);
  const std::uint32_t subnormal = shifted - 0x3F000000U;
  const std::uint32_t nan = 0x7E00U | ((magnitude >> 13) & 0x3FFU);
  std::uint32_t result = select(magnitude < (113U << 23), subnormal, normal);
  result = select(magnitude >= 0x477FF000U, 0x7C00U, result);  // 65520 and greater: infinity
  result = select(magnitude > 0x7F800000U, nan, result);
  return static_cast<std::uint16_t>(result | sign);
}

}  // namespace

VITCACHE_VECTORISED void cast_to_bfloat16(std::uint16_t* destination, const void* source,
                                          std::int64_t count) {
  const auto* bits = static_cast<const std::uint32_t*>(source);
  for (std::int64_t i = 0; i < count; ++i) destination[i] = to_bfloat16(load(bits, i));
}

VITCACHE_VECTORISED void cast_to_float16(std::uint16_t* destination, const void* source, std::int64_t count) {
  const auto* bits = static_cast<const std::uint32_t*>(source);
  for (std::int64_t i = 0; i < count; ++i) destination[i] = to_float16(load(bits, i));
}

}  // namespace vitcache
