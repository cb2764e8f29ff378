// A copy past the caches of this CPU: of what a device, or nobody soon, will read.
//
// The stores are weakly ordered: `order_stores` must come between them and the release that tells of them.
#pragma once

#include <cstddef>

namespace vitcache {

void stream_copy(std::byte* destination, const std::byte* source, std::size_t bytes);

void order_stores();

}  // namespace vitcache
