#include "runtime/event_pool.h"

#include <new>

namespace vitcache {

EventPool::~EventPool() {
  if (getpid() != process_) return;
  for (const Event event : free_) runtime_->destroy_event(event);
}

SharedEvent EventPool::take() {
  Event event(nullptr);
  {
    const Lock lock(mutex_);
    if (!free_.empty()) {
      event = free_.back();
      free_.pop_back();
    }
  }
  if (event.handle == nullptr) event = runtime_->create_event(device_);
  return SharedEvent(
      {event.handle, [pool = shared_from_this()](void* handle) { pool->put_back(Event(handle)); }});
}

void EventPool::put_back(Event event) {
  // In a forked child the mutex may stay locked for ever: another thread of the parent may have held it
  // during the fork.
  if (getpid() != process_) return;
  try {
    const Lock lock(mutex_);
    free_.push_back(event);
  } catch (const std::bad_alloc&) {
    runtime_->destroy_event(event);
  }
}

}  // namespace vitcache
