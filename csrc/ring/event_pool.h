// Events of one device, made once and used again.
//
// An event returns to its pool with its last holder. The next holder may record it anew: who waits for an
// event must hold it.
//
// Thread rule: any thread may take, hold and drop events, whichever device is current. No lock is held over a
// call of the runtime. The pool lives as long as its last event. A forked child gives no event back.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

#include "runtime/cuda_runtime.h"
#include "runtime/mutex.h"

namespace vitcache {

// An event of a pool, held by each who needs the point in a stream that the event marks; or none.
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

  // An event that nobody else holds. Throws CudaError.
  SharedEvent take() VITCACHE_EXCLUDES(mutex_);

 private:
  void give_back(Event event) VITCACHE_EXCLUDES(mutex_);

  SharedRuntime runtime_;
  int device_;
  pid_t process_;
  Mutex mutex_;
  std::vector<Event> free_ VITCACHE_GUARDED_BY(mutex_);
};

}  // namespace vitcache
