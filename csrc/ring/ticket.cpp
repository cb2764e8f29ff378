#include "ring/ticket.h"

#include <chrono>
#include <thread>

#include "runtime/device_guard.h"

namespace vitcache {

void Ticket::wait_source_read() const {
  while (!source_read()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

bool Ticket::is_over() const {
  if (!source_read()) return false;
  if (!last_) return true;
  const DeviceGuard guard(*runtime_, device_, std::nothrow);
  return runtime_->is_done_or_lost(last_.get());
}

void Ticket::wait(Stream stream) const {
  raise();
  if (last_) runtime_->wait_event(stream, last_.get());
}

void Ticket::synchronize() const {
  raise();
  if (!last_) return;
  const DeviceGuard guard(*runtime_, device_);
  runtime_->synchronize(last_.get());
}

bool Ticket::done() const {
  raise();
  if (!last_) return true;
  const DeviceGuard guard(*runtime_, device_);
  return runtime_->is_done(last_.get());
}

void Ticket::raise() const {
  if (cause_ != nullptr) std::rethrow_exception(cause_);
}

}  // namespace vitcache
