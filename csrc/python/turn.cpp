#include "python/turn.h"

namespace vitcache {

Moment Turn::enter(const std::string& call) {
  settle_forks();
  if (holder() == 0)
    take(this_thread(), call);
  else
    wait(call, std::nullopt);
  return taken();
}

void Turn::exit(Moment entered) {
  settle_forks();
  if (holder() != 0 && taken() == entered) hand_over();
}

std::optional<std::string> Turn::current() const {
  settle_forks();
  if (holder() == 0) return std::nullopt;
  return holder_call();
}

// Gives the turn to the thread that has waited longest. If it were free instead, a thread that leaves it and
// enters again at once could keep it for ever.
void Turn::hand_over() {
  leave();
  offer();
}

void Turn::offer() {
  if (holder() != 0) return;
  Waiter* const next = first_ready_waiter();
  if (next == nullptr) return;
  take(next->thread, next->call);
  grant(*next);
}

void TurnUse::exit() {
  const Moment entered = entered_;
  entered_ = 0;
  if (entered != 0) turn_->exit(entered);
}

}  // namespace vitcache
