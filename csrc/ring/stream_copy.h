// A copy that bypasses the caches of this CPU, for bytes that this CPU will not read soon.
//
// Its stores are weakly ordered. Call `order_stores` after them and before the release store that publishes
// the bytes.
#pragma once

#include <cstddef>

namespace vitcache {

void stream_copy(std::byte* destination, const std::byte* source, std::size_t bytes);

void order_stores();

}  // namespace vitcache
