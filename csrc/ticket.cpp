#include "ticket.h"

namespace vitcache {

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
