#include "ring/ticket.h"

#include <chrono>
#include <stdexcept>
#include <thread>

#include "runtime/error.h"

namespace vitcache {

void Ticket::wait_source_read() const {
  while (!source_read()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

bool Ticket::is_in_flight() const {
  return !source_read() || (last_ && !runtime_->is_done_or_lost(last_.get()));
}

void Ticket::wait(Stream stream) const {
  raise();
  if (!last_) return;
  // CUDA would invalidate the capture: a captured stream cannot wait for an event that was recorded outside.
  VITCACHE_CHECK(!runtime_->is_capturing(stream), std::runtime_error,
                 "a wait for a copy through the ring cannot be captured in a CUDA graph: wait before the "
                 "capture");
  runtime_->wait_event(stream, last_.get());
}

void Ticket::synchronize() const {
  raise();
  if (last_) runtime_->synchronize(last_.get());
}

bool Ticket::done() const {
  raise();
  return !last_ || runtime_->is_done(last_.get());
}

void Ticket::raise() const {
  if (cause_ != nullptr) std::rethrow_exception(cause_);
}

}  // namespace vitcache
