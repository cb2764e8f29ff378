// The streams of the stand-in: those that callers created, and the default streams.
//
// Rules of CUDA's default streams ("Stream synchronization behavior" in the manual of the CUDA runtime):
//   - Handles 0 and 1 (cudaStreamLegacy) name the legacy stream of the current device. Work of the legacy
//     stream first waits for all blocking streams of its device. Their later work waits for that work.
//   - Handle 2 (cudaStreamPerThread) names the calling thread's default stream of the current device, which
//     is a blocking stream. It ends with its thread, after its queued work.
//   - A stream that was created with cudaStreamNonBlocking does not synchronize with the legacy stream.
//
// Thread rule: any thread may call any method.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>

#include "runtime/mutex.h"
#include "stand_in/stream.h"

namespace vitcache::stand_in {

class StreamTable {
 public:
  Stream* create(int device, bool is_blocking) VITCACHE_EXCLUDES(mutex_);

  // Removes the stream that `create` returned. Its queued work still runs. Returns its serial number, or 0 if
  // `create` did not return `handle`.
  std::uint64_t destroy(void* handle) VITCACHE_EXCLUDES(mutex_);

  // Returns the stream that `handle` names in the calling thread while `device` is current, or null. Creates
  // a default stream on its first use.
  Stream* find(void* handle, int device) VITCACHE_EXCLUDES(mutex_);

  // Queues work. Work of a legacy stream is ordered with the blocking streams of its device.
  void push(Stream& stream, std::function<void()> work) VITCACHE_EXCLUDES(mutex_);

  // The number of streams that callers created and did not destroy.
  std::size_t size() const VITCACHE_EXCLUDES(mutex_);

 private:
  Stream* create_blocking(int device) VITCACHE_REQUIRES(mutex_);
  Stream* find_legacy(int device) VITCACHE_EXCLUDES(mutex_);
  Stream* find_per_thread(int device) VITCACHE_EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::set<Stream*> created_ VITCACHE_GUARDED_BY(mutex_);
  std::set<Stream*> blocking_ VITCACHE_GUARDED_BY(mutex_);  // of `created_`, and all per-thread streams
  std::map<int, Stream*> legacy_ VITCACHE_GUARDED_BY(mutex_);
};

// The table of this process. Never destroyed: streams may still run when the process ends.
StreamTable& stream_table();

}  // namespace vitcache::stand_in
