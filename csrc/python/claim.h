// Claims in the hands of Python: a claim is released when its object is destroyed, and a wait for one can be
// interrupted.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cache/ledger.h"
#include "python/waits.h"

namespace vitcache {

// The owner of a claimed key; the other callers wait for it.
class ClaimOwner final : public Resource, public Claims::Token {
 public:
  // The call of the owner: of the turn that it took since, or `call`.
  std::string holder_call() const override;
  std::string use() const override { return "is encoding this item"; }
  void abandon() override { release(); }

  void take_over(const std::string& call) { take(this_thread(), call); }
  // Ends the claim, and every wait for it.
  void release();

 protected:
  void offer() override {}  // `release` has granted all waits
};

// One caller's claim on a key.
class KeyClaim {
 public:
  // Registers itself as the owner, unless the key has one.
  KeyClaim(const std::shared_ptr<Ledger>& ledger, std::int64_t epoch, const Key& key,
           const std::string& call);
  ~KeyClaim() { release(); }
  KeyClaim(const KeyClaim&) = delete;
  KeyClaim& operator=(const KeyClaim&) = delete;

  bool is_mine() const;
  bool is_released() const;
  std::int64_t num_waiting() const { return owner_->num_waiting(); }
  // From now on the owner is the calling thread. Does nothing if the claim is not the owner's.
  void take_over(const std::string& call);
  // As Resource::wait.
  bool wait(const std::string& call, std::optional<double> timeout_s);
  // Does nothing if the claim is not the owner's.
  void release();

 private:
  std::weak_ptr<Ledger> ledger_;
  std::int64_t epoch_;
  Key key_;
  std::shared_ptr<ClaimOwner> own_;
  std::shared_ptr<ClaimOwner> owner_;  // of the key when this claim was made; equal to `own_` if it is mine
};

}  // namespace vitcache
