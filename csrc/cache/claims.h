// Claims, or single-flight: of all callers that miss one key, one owns the encode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

#include "cache/key.h"

namespace vitcache {

// The owner of each claimed key, by epoch and key. An owner is a token, on which other callers wait.
class Claims {
 public:
  struct Token {
    bool is_released = false;  // another caller may own the key
  };
  using Owner = std::shared_ptr<Token>;

  // Registers `owner` if the key has no owner, or one whose token is released. Returns the key's owner.
  Owner claim(std::int64_t epoch, const Key& key, Owner owner) {
    Owner& registered = owners_[ClaimedKey{epoch, key}];
    if (registered == nullptr || registered->is_released) registered = std::move(owner);
    return registered;
  }

  // Does nothing if `owner` does not own the key.
  void release(std::int64_t epoch, const Key& key, const Owner& owner) {
    const auto found = owners_.find({epoch, key});
    if (found != owners_.end() && found->second == owner) owners_.erase(found);
  }

  std::int64_t size() const {
    std::int64_t count = 0;
    for (const auto& claimed : owners_) count += !claimed.second->is_released;
    return count;
  }

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
