// Events of the runtime, made once and used again.
//
// An event goes back to the pool with its last holder. Between two holders it may be recorded anew: who waits
// for an event must hold it.
//
// Thread rule: any thread may take, hold and drop events. No lock is held over a call of the runtime. The
// pool lives as long as its last event. A process that was forked off drops them without a word.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/cuda_runtime.h"

namespace vitcache {

// Shared by whoever needs the point in a stream that it marks. The handle is the runtime's.
using Event = std::shared_ptr<void>;

class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  explicit EventPool(SharedRuntime runtime) : runtime_(std::move(runtime)), process_(getpid()) {}
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool();

  // An event that nobody else holds. Throws CudaError.
  Event take();

 private:
  void give_back(void* event);

  SharedRuntime runtime_;
  pid_t process_;
  std::mutex mutex_;
  std::vector<void*> free_;
};

}  // namespace vitcache
