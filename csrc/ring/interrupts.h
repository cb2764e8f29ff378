// The check of a thread that waits on the host: whether the wait must end early.
//
// The Python module passes a check that runs the handlers of signals. The check may throw; the exception then
// ends the wait. The check may run code that calls the ring, so the waiting thread must hold no lock.
#pragma once

#include <chrono>
#include <functional>
#include <utility>

namespace vitcache {

// One wait, which checks at most every 20 ms: the check takes the GIL. Used by one thread.
class Interrupts {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kInterval{20};

  Interrupts() = default;  // checks nothing
  explicit Interrupts(std::function<void()> check)
      : check_(std::move(check)), next_(Clock::now() + kInterval) {}

  bool can_end_a_wait() const { return check_ != nullptr; }
  bool is_due() const { return check_ && Clock::now() >= next_; }

  void run() {
    check_();
    next_ = Clock::now() + kInterval;
  }

 private:
  std::function<void()> check_;
  Clock::time_point next_;
};

}  // namespace vitcache
