#include "ring/ticket.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "runtime/error.h"

namespace vitcache {

namespace {

constexpr std::chrono::microseconds kPoll{20};
// A wait for the device polls without a pause for this long, as the runtime does, then with pauses.
constexpr std::chrono::milliseconds kBusyWait{1};

}  // namespace

void Ticket::wait_source_read(Interrupts interrupts) const {
  while (!source_read()) {
    std::this_thread::sleep_for(kPoll);
    if (interrupts.is_due()) interrupts.run();
  }
}

bool Ticket::is_in_flight() const {
  return !source_read() || (last_ && !runtime_->is_done_or_lost(last_.get()));
}

void Ticket::wait(Stream stream) const {
  check();
  if (!last_) return;
  // CUDA would invalidate the capture: a captured stream cannot wait for an event that was recorded outside.
  VITCACHE_CHECK(!runtime_->is_capturing(stream), std::runtime_error,
                 "a wait for a copy through the ring cannot be captured in a CUDA graph: wait before the "
                 "capture");
  runtime_->wait_event(stream, last_.get());
}

void Ticket::synchronize(Interrupts interrupts) const {
  check();
  if (!last_) return;
  if (!interrupts.can_end_a_wait()) return runtime_->synchronize(last_.get());
  const auto start = Interrupts::Clock::now();
  while (!runtime_->is_done(last_.get())) {
    if (Interrupts::Clock::now() < start + kBusyWait)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kPoll);
    if (!interrupts.is_due()) continue;
    interrupts.run();
    check();  // the interrupt may have forked, and this may be the child
  }
}

bool Ticket::done() const {
  check();
  return !last_ || runtime_->is_done(last_.get());
}

void Ticket::check() const {
  VITCACHE_CHECK(getpid() == process_, std::runtime_error,
                 "the copy belongs to process " + std::to_string(process_) + ", this is process " +
                     std::to_string(getpid()) + ": spawn processes and create a ring in each");
  if (cause_ != nullptr) std::rethrow_exception(cause_);
}

}  // namespace vitcache
