// Worker threads that fill slots: they copy sources into page-locked memory and store the slots' flags.
//
// A job is cut into chunks. Every thread takes the next chunk of the oldest job, so that the oldest slot is
// full as early as possible. The thread that completes a job stores the job's `full` flag; a stream waits for
// this flag. The threads make no CUDA call and never take the GIL. So a thread that waits for the device, or
// for a slot, cannot delay a flag.
//
// Thread rule: any thread may submit a job. The destructor finishes all submitted jobs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "ring/fill.h"
#include "ring/slot_flags.h"
#include "runtime/mutex.h"

namespace vitcache {

// Elements `[first, first + count)` of a source, written to `destination`.
struct FillJob {
  std::shared_ptr<const StridedView> source;
  std::int64_t first;
  std::int64_t count;
  Cast cast;
  std::byte* destination;
  SlotFlag full;                                      // stored when all elements are written
  std::shared_ptr<std::atomic<std::int64_t>> unread;  // the number of unfinished jobs of the copy
};

class FillWorkers {
 public:
  // Bytes of a chunk. One core copies a chunk in about 50 us, far longer than a thread needs to take a chunk
  // from the queue.
  static constexpr std::int64_t kChunkBytes = std::int64_t{512} << 10;

  // Throws std::runtime_error if a thread cannot be started. Then the started threads end.
  explicit FillWorkers(int num_threads);
  FillWorkers(const FillWorkers&) = delete;
  FillWorkers& operator=(const FillWorkers&) = delete;
  ~FillWorkers();

  int num_threads() const { return static_cast<int>(threads_.size()); }
  void submit(FillJob job) VITCACHE_EXCLUDES(mutex_);

 private:
  struct SharedJob {
    explicit SharedJob(FillJob submitted) : job(std::move(submitted)), unwritten(job.count) {}

    const FillJob job;
    std::atomic<std::int64_t> unwritten;  // elements
  };

  struct Queued {
    std::shared_ptr<SharedJob> shared;
    std::int64_t chunk_elements;
    std::int64_t next;  // the first element that no thread has taken
  };

  // Elements `[begin, begin + count)` of a job.
  struct Chunk {
    std::shared_ptr<SharedJob> shared;
    std::int64_t begin;
    std::int64_t count;
  };

  void run();
  // Waits for a chunk. Returns none if the workers are stopping and all chunks are taken.
  std::optional<Chunk> take() VITCACHE_EXCLUDES(mutex_);
  void stop() VITCACHE_EXCLUDES(mutex_);

  Mutex mutex_;
  Condition changed_;
  std::deque<Queued> queue_ VITCACHE_GUARDED_BY(mutex_);
  bool stopping_ VITCACHE_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace vitcache
