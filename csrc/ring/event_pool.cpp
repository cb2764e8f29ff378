#include "ring/event_pool.h"

#include <new>

namespace vitcache {

EventPool::~EventPool() {
  if (getpid() != process_) return;
  for (void* event : free_) runtime_->destroy_event(event);
}

Event EventPool::take() {
  void* event = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      event = free_.back();
      free_.pop_back();
    }
  }
  if (event == nullptr) event = runtime_->create_event();
  return Event(event, [pool = shared_from_this()](void* done) { pool->give_back(done); });
}

void EventPool::give_back(void* event) {
  if (getpid() != process_)
    return;  // another thread may have held the mutex when this process was forked off
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(event);
  } catch (const std::bad_alloc&) {
    runtime_->destroy_event(event);
  }
}

}  // namespace vitcache
