#include "python/claim.h"

#include <stdexcept>

namespace vitcache {

std::string ClaimOwner::holder_call() const {
  const std::string turn = last_turn_of(holder(), taken());
  return turn.empty() ? Resource::holder_call() : turn;
}

void ClaimOwner::release() {
  is_released = true;
  leave();
  while (Waiter* const waiter = first_waiter()) grant(*waiter);
}

KeyClaim::KeyClaim(const std::shared_ptr<Ledger>& ledger, std::int64_t epoch, const Key& key,
                   const std::string& call)
    : ledger_(ledger), epoch_(epoch), key_(key), own_(std::make_shared<ClaimOwner>()) {
  settle_forks();
  owner_ = std::static_pointer_cast<ClaimOwner>(ledger->claims().claim(epoch, key, own_));
  if (owner_ == own_) own_->take_over(call);
}

bool KeyClaim::is_mine() const {
  settle_forks();
  return own_ == owner_ && !own_->is_released;
}

bool KeyClaim::is_released() const {
  settle_forks();
  return owner_->is_released;
}

void KeyClaim::take_over(const std::string& call) {
  if (is_mine() && own_->holder() != this_thread()) own_->take_over(call);
}

bool KeyClaim::wait(const std::string& call, std::optional<double> timeout_s) {
  if (is_released()) return true;
  const std::shared_ptr<ClaimOwner> owner = owner_;  // this object may be destroyed during the wait
  return owner->wait(call, timeout_s);
}

void KeyClaim::release() {
  if (!is_mine()) return;
  own_->release();
  if (const auto ledger = ledger_.lock()) ledger->claims().release(epoch_, key_, own_);
}

}  // namespace vitcache
