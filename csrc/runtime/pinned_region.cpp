#include "runtime/pinned_region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/host_limits.h"

namespace vitcache {
namespace {

// Writes one byte of each page, with several threads.
void touch(std::byte* data, std::size_t bytes, std::size_t page_bytes, int num_threads) {
  const auto threads = static_cast<std::size_t>(num_threads);
  const std::size_t share = (bytes / page_bytes + threads - 1) / threads * page_bytes;
  const auto touch_range = [data, page_bytes](std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end; at += page_bytes) data[at] = std::byte{0};
  };
  std::vector<std::thread> helpers;
  helpers.reserve(threads);
  std::size_t begin = share;
  try {
    for (; begin < bytes; begin += share)
      helpers.emplace_back(touch_range, begin, std::min(begin + share, bytes));
  } catch (const std::system_error&) {
    touch_range(begin, bytes);  // no further thread can be started: the calling thread touches the rest
  }
  touch_range(0, std::min(share, bytes));
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

PinnedRegion::PinnedRegion(SharedRuntime runtime, std::size_t bytes, int num_threads)
    : runtime_(std::move(runtime)) {
  const auto begin = std::chrono::steady_clock::now();
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  VITCACHE_CHECK(
      bytes <= std::numeric_limits<std::size_t>::max() - page_bytes && bytes <= available_host_bytes(),
      OutOfMemory,
      "cannot page-lock " + std::to_string(bytes) + " bytes: " + describe_available_host_bytes());
  bytes_ = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int reason = errno;  // the description below reads files, which sets errno
  VITCACHE_CHECK(memory != MAP_FAILED, OutOfMemory,
                 "cannot allocate " + std::to_string(bytes_) + " bytes: " +
                     std::generic_category().message(reason) + "; " + describe_available_host_bytes());
  data_ = static_cast<std::byte*>(memory);
  try {
    // If a forked child shared the pages, a write of the parent would move the data to a copy of the page
    // (copy-on-write), and the device would still read the original page.
    VITCACHE_CHECK(madvise(memory, bytes_, MADV_DONTFORK) == 0, std::system_error,
                   std::error_code(errno, std::generic_category()));
    touch(data_, bytes_, page_bytes, num_threads);
    runtime_->register_host(data_, bytes_);
  } catch (const OutOfMemory& error) {
    munmap(memory, bytes_);
    throw OutOfMemory(std::string(error.what()) + "; " + describe_available_host_bytes());
  } catch (...) {
    munmap(memory, bytes_);
    throw;
  }
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

PinnedRegion::~PinnedRegion() {
  runtime_->unregister_host(data_);
  munmap(data_, bytes_);
}

}  // namespace vitcache
