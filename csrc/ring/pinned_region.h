// Page-locked memory of one process: allocated, touched and locked at construction, given back at the end.
//
// Its pages are touched by several threads before they are locked, as locking touches them with one.
//
// Thread rule: immutable. A process that was forked off does not have it.
#pragma once

#include <cstddef>

#include "runtime/cuda_runtime.h"

namespace vitcache {

class PinnedRegion {
 public:
  // Whole pages of memory, `bytes` at least. Throws OutOfMemory where there is not so much memory, or where
  // it cannot be locked, and CudaError.
  PinnedRegion(SharedRuntime runtime, std::size_t bytes, int num_threads);
  PinnedRegion(const PinnedRegion&) = delete;
  PinnedRegion& operator=(const PinnedRegion&) = delete;
  ~PinnedRegion();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  // What construction took.
  double seconds() const { return seconds_; }

 private:
  SharedRuntime runtime_;
  std::byte* data_ = nullptr;
  std::size_t bytes_;
  double seconds_ = 0;
};

}  // namespace vitcache
