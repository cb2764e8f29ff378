// Events of one device, which are reused.
//
// When the last SharedEvent of an event is destroyed, the event returns to its pool, and its next user may
// record it again. So a thread that waits for an event must keep a SharedEvent until the wait ends.
//
// Thread rule: any thread may take, copy and destroy SharedEvents, whichever device is current. No lock is
// held during a call of the runtime. The pool lives as long as its last SharedEvent. In a forked child no
// event returns to the pool.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

#include "runtime/cuda_runtime.h"
#include "runtime/mutex.h"

namespace vitcache {

// A shared reference to an event of a pool, or empty. Every user of the recorded point keeps a copy.
class SharedEvent {
 public:
  SharedEvent() = default;

  explicit operator bool() const { return handle_ != nullptr; }
  Event get() const { return Event(handle_.get()); }

 private:
  friend class EventPool;
  explicit SharedEvent(std::shared_ptr<void> handle) : handle_(std::move(handle)) {}

  std::shared_ptr<void> handle_;
};

class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  EventPool(SharedRuntime runtime, int device)
      : runtime_(std::move(runtime)), device_(device), process_(getpid()) {}
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool();

  // Returns an event without other users. Throws CudaError.
  SharedEvent take() VITCACHE_EXCLUDES(mutex_);

 private:
  void put_back(Event event) VITCACHE_EXCLUDES(mutex_);

  SharedRuntime runtime_;
  int device_;
  pid_t process_;
  Mutex mutex_;
  std::vector<Event> free_ VITCACHE_GUARDED_BY(mutex_);
};

}  // namespace vitcache
