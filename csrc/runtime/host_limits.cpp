#include "runtime/host_limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>

namespace vitcache {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kKibibyte = 1024;

// The memory limit of the control group that a container sees as its own: version 2, then version 1.
constexpr const char* kLimits[] = {"/sys/fs/cgroup/memory.max",
                                   "/sys/fs/cgroup/memory/memory.limit_in_bytes"};

// The lines of /proc/meminfo are "name: number kB". A file that cannot be opened says nothing.
std::uint64_t read_meminfo() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::uint64_t kibibytes = 0, available = kUnknown, swap = 0;
  while (file >> name >> kibibytes) {
    std::getline(file, unit);
    if (name == "MemAvailable:") available = kibibytes * kKibibyte;
    if (name == "SwapFree:") swap = kibibytes * kKibibyte;
  }
  return available == kUnknown ? kUnknown : available + swap;
}

// The bytes that this process may still map (`ulimit -v`).
std::uint64_t read_address_space() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnknown;
  std::ifstream file("/proc/self/statm");
  std::uint64_t pages = 0;
  if (!(file >> pages)) return kUnknown;
  const std::uint64_t used = pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

}  // namespace

std::uint64_t available_host_bytes() {
  std::uint64_t available = std::min(read_meminfo(), read_address_space());
  for (const char* path : kLimits) {
    std::ifstream file(path);
    if (std::uint64_t limit = 0; file >> limit) available = std::min(available, limit);  // not if it is "max"
  }
  return available;
}

std::string describe_available_host_bytes() {
  const std::uint64_t available = available_host_bytes();
  return available == kUnknown ? "the system does not say how much host memory is available"
                               : std::to_string(available) + " bytes of host memory are available";
}

}  // namespace vitcache
