// Page-locked memory of one process. The constructor allocates, touches and page-locks it; the destructor
// frees it.
//
// Several threads touch the pages first, because page-locking untouched pages would touch them in one thread.
//
// Thread rule: immutable. In a forked child the memory is not mapped.
#pragma once

#include <cstddef>

#include "runtime/cuda_runtime.h"

namespace vitcache {

class PinnedRegion {
 public:
  // Allocates `bytes`, rounded up to whole pages. Throws OutOfMemory if the memory cannot be allocated or
  // page-locked, and CudaError. It refuses more than the available memory before it touches a page: the
  // system would end a process to find the memory.
  PinnedRegion(SharedRuntime runtime, std::size_t bytes, int num_threads);
  PinnedRegion(const PinnedRegion&) = delete;
  PinnedRegion& operator=(const PinnedRegion&) = delete;
  ~PinnedRegion();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  // Duration of the construction.
  double seconds() const { return seconds_; }

 private:
  SharedRuntime runtime_;
  std::byte* data_ = nullptr;
  std::size_t bytes_;
  double seconds_ = 0;
};

}  // namespace vitcache
