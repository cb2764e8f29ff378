// Casts of float32 arrays to 16 bits. The arithmetic is written once, for one value. The compiler vectorizes
// it separately for each generation of x86-64.
#pragma once

#include <cstdint>

namespace vitcache {

// Cast `count` values of `source`, which need not be aligned.
void cast_to_bfloat16(std::uint16_t* destination, const void* source, std::int64_t count);
void cast_to_float16(std::uint16_t* destination, const void* source, std::int64_t count);

}  // namespace vitcache
