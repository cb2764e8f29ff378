// Claims, or single-flight: of all callers that miss one key, one owns the encode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

#include "cache/key.h"

namespace vitcache {

// The owner of each claimed key, by epoch and key. An owner is an opaque token, on which other callers wait.
class Claims {
 public:
  using Owner = std::shared_ptr<void>;

  // Registers `owner` if the key has no owner. Returns the key's owner.
  Owner claim(std::int64_t epoch, const Key& key, Owner owner) {
    return owners_.emplace(ClaimedKey{epoch, key}, std::move(owner)).first->second;
  }

  bool is_owner(std::int64_t epoch, const Key& key, const Owner& owner) const {
    const auto found = owners_.find({epoch, key});
    return found != owners_.end() && found->second == owner;
  }

  // Does nothing if `owner` does not own the key.
  void release(std::int64_t epoch, const Key& key, const Owner& owner) {
    const auto found = owners_.find({epoch, key});
    if (found != owners_.end() && found->second == owner) owners_.erase(found);
  }

  std::int64_t size() const { return static_cast<std::int64_t>(owners_.size()); }

 private:
  struct ClaimedKey {
    std::int64_t epoch;
    Key key;
    bool operator==(const ClaimedKey& other) const { return epoch == other.epoch && key == other.key; }
  };
  struct Hash {
    std::size_t operator()(const ClaimedKey& claimed) const {
      return KeyHash{}(claimed.key) ^ static_cast<std::size_t>(claimed.epoch);
    }
  };

  std::unordered_map<ClaimedKey, Owner, Hash> owners_;
};

}  // namespace vitcache
