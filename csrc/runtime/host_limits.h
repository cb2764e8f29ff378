// The memory that this process can still get from the host.
#pragma once

#include <cstdint>
#include <string>

namespace vitcache {

// Bytes that the host can still give: free and reclaimable memory and free swap space, at most the limit of
// the process's control group and the rest of its address space (`ulimit -v`). The greatest number if the
// system does not say. Any thread may call.
std::uint64_t available_host_bytes();

// "`count` bytes of host memory are available", or "the system does not say how much host memory is
// available".
std::string describe_available_host_bytes();

}  // namespace vitcache
