#include "ring/event_pool.h"

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
      {event.handle, [pool = shared_from_this()](void* handle) { pool->give_back(Event(handle)); }});
}

void EventPool::give_back(Event event) {
  if (getpid() != process_)
    return;  // another thread may have held the mutex when this process was forked off
  try {
    const Lock lock(mutex_);
    free_.push_back(event);
  } catch (const std::bad_alloc&) {
    runtime_->destroy_event(event);
  }
}

}  // namespace vitcache
