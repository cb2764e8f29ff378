// float32 to 16 bits, over arrays: the arithmetic is written once, the compiler makes vectors of it, for each
// generation of x86-64 its own.
#pragma once

#include <cstdint>

namespace vitcache {

// `count` values from `source`, which need not be aligned.
void cast_to_bfloat16(std::uint16_t* destination, const void* source, std::int64_t count);
void cast_to_float16(std::uint16_t* destination, const void* source, std::int64_t count);

}  // namespace vitcache
