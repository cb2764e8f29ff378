// Fills page-locked memory with the elements of a strided view, in row-major order, optionally cast.
//
// The device reads the written bytes; the CPU does not. So contiguous elements are written with streaming
// stores, which bypass the CPU's caches. Streaming stores are weakly ordered: `fill` ends with a store fence,
// so that a release store after `fill` publishes the bytes.
//
// Thread rule: calls that write different bytes may run at the same time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ring/strided_view.h"

namespace vitcache {

// Both casts round to nearest even. In bfloat16 every NaN becomes 0x7FC0 (torch returns 0x7FC0 or 0xFFFF,
// depending on the tensor's length and on the CPU). In float16 a NaN keeps its sign and the upper bits of its
// payload, as in torch.
enum class Cast { kNone, kFloat32ToBfloat16, kFloat32ToFloat16 };

// Bytes of an element after `cast`. Throws std::invalid_argument if `cast` casts float32 and `element_bytes`
// is not 4.
std::int64_t cast_bytes(Cast cast, std::int64_t element_bytes);

// Writes elements `[first, first + count)` of `source`, in row-major order, to `destination`.
void fill(std::byte* destination, const StridedView& source, std::int64_t first, std::int64_t count,
          Cast cast);

}  // namespace vitcache
