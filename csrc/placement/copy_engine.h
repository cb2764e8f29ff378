// Copies of long runs of host rows, on a stream of their own.
//
// A copy engine copies a long block of host memory faster than a kernel reads it. The copies run beside the
// launches that the caller queues between `CopyEngine::start` and `PendingCopies::join`.
//
// Thread rule: any thread may call `start`, for streams of the engine's device. No lock is held. A
// PendingCopies belongs to one thread.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "placement/destination.h"
#include "placement/placement.h"
#include "runtime/cuda_runtime.h"
#include "runtime/event_pool.h"
#include "runtime/handles.h"
#include "runtime/owned_stream.h"

namespace vitcache {

// `num_rows` rows of `row_bytes` bytes. Adjacent rows are `stride` and `source_stride` bytes apart.
struct RowsCopy {
  std::byte* destination;
  std::size_t stride;
  const std::byte* source;
  std::size_t source_stride;
  std::size_t row_bytes;
  std::size_t num_rows;

  bool is_one_block() const { return num_rows == 1 || (stride == row_bytes && source_stride == row_bytes); }
};

// The copies that write `blocks` of a placement to every plane of a destination.
std::vector<RowsCopy> copies_of(const std::vector<BlockCopy>& blocks, const Placement& placement,
                                const Destination& destination);

// Copies that are queued behind earlier work of `stream`. The destructor joins.
class PendingCopies {
 public:
  PendingCopies(SharedRuntime runtime, Stream stream) : runtime_(std::move(runtime)), stream_(stream) {}
  PendingCopies(const PendingCopies&) = delete;
  PendingCopies& operator=(const PendingCopies&) = delete;
  ~PendingCopies();

  // Makes later work of `stream` wait for the copies. The host does not wait. A second call does nothing.
  // Throws CudaError.
  void join();

 private:
  friend class CopyEngine;

  SharedRuntime runtime_;
  Stream stream_;
  SharedEvent behind_;  // empty: nothing to wait for
};

class CopyEngine {
 public:
  // Throws CudaError.
  CopyEngine(SharedRuntime runtime, int device);

  // Queues copies behind all work that is queued on `stream`: blocks in one batch, and other rows by a
  // two-dimensional copy each. The caller keeps all memory alive until later work of `stream` is complete. If
  // a call fails, `stream` waits for the copies that are queued; if it cannot wait, the host does. Throws
  // CudaError.
  std::unique_ptr<PendingCopies> start(const std::vector<RowsCopy>& copies, Stream stream) const;

 private:
  void queue(const std::vector<RowsCopy>& copies) const;

  SharedRuntime runtime_;
  OwnedStream stream_;
  std::shared_ptr<EventPool> events_;
};

}  // namespace vitcache
