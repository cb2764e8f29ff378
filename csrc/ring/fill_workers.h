// Threads that fill slots: they copy sources into page-locked memory, and say when one is full.
//
// A job is cut into chunks, and every thread takes the next chunk of the oldest job, so that the first slot
// of a queue is full as early as it can be. When the last chunk of a job is written, its `full` flag is
// stored for a stream to see. The threads make no CUDA call and take no lock of Python's: nothing that waits
// for the device, or for a slot, can keep them from storing a flag.
//
// Thread rule: any thread may submit. The destructor finishes what was submitted.
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
  SlotFlag full;                                      // stored when all is written
  std::shared_ptr<std::atomic<std::int64_t>> unread;  // jobs of one copy whose source is still to be read
};

class FillWorkers {
 public:
  // Bytes of a chunk: about 50 us of one core, and far more than taking it costs.
  static constexpr std::int64_t kChunkBytes = std::int64_t{512} << 10;

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
  // Waits for a chunk; none when the workers stop and all is taken.
  std::optional<Chunk> take() VITCACHE_EXCLUDES(mutex_);
  void stop() VITCACHE_EXCLUDES(mutex_);

  Mutex mutex_;
  Condition changed_;
  std::deque<Queued> queue_ VITCACHE_GUARDED_BY(mutex_);
  bool stopping_ VITCACHE_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace vitcache
