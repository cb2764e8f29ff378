// Filling page-locked memory: elements of a strided view, in order, cast on the way.
//
// What is written is read by a device, not by this CPU, so long runs are written past its caches with
// streaming stores. Those are weakly ordered: `fill` ends with the fence that lets a release store after it
// cover them.
//
// Thread rule: none of its own; calls that write different bytes may run at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ring/strided_view.h"

namespace vitcache {

// Both round to nearest even. A NaN becomes 0x7FC0 as bfloat16 (torch gives this or 0xFFFF, by the length of
// the tensor and the CPU), and keeps its sign and the top of its payload as float16, as torch does.
enum class Cast { kNone, kFloat32ToBfloat16, kFloat32ToFloat16 };

// Bytes of an element after `cast`. Throws std::invalid_argument if elements of so many bytes have none.
std::int64_t cast_bytes(Cast cast, std::int64_t element_bytes);

// Writes elements `[first, first + count)` of `source`, in row-major order, to `destination`.
void fill(std::byte* destination, const StridedView& source, std::int64_t first, std::int64_t count,
          Cast cast);

}  // namespace vitcache
