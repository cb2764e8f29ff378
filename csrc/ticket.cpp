#include "ticket.h"

#include <chrono>
#include <thread>

#include "error.h"

namespace vitcache {

void Ticket::wait_source_read() const {
  while (!source_read()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

bool Ticket::is_over() const {
  try {
    return source_read() && (last_ == nullptr || runtime_->passed(last_.get()));
  } catch (const CudaError&) {
    return true;  // the device is lost and writes nothing
  }
}

void Ticket::wait(void* stream) const {
  raise();
  if (last_ != nullptr) runtime_->wait_event(stream, last_.get());
}

void Ticket::synchronize() const {
  raise();
  if (last_ != nullptr) runtime_->synchronize(last_.get());
}

bool Ticket::done() const {
  raise();
  return last_ == nullptr || runtime_->passed(last_.get());
}

void Ticket::raise() const {
  if (cause_ != nullptr) std::rethrow_exception(cause_);
}

}  // namespace vitcache
