// The keys of entries that left the cache, for callers that keep books of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <unordered_map>
#include <vector>

#include "cache/key.h"

namespace vitcache {

// The last `capacity` keys that left, each once, the oldest first. Each change takes constant time.
class EvictionRecord {
 public:
  explicit EvictionRecord(std::int64_t capacity) : capacity_(static_cast<std::size_t>(capacity)) {}

  bool is_enabled() const { return capacity_ > 0; }
  const std::list<Key>& keys() const { return keys_; }

  // Records a key as the newest one. Forgets the oldest key if the record is full.
  void add(const Key& key) {
    if (!is_enabled()) return;
    remove(key);
    if (keys_.size() == capacity_) remove(Key(keys_.front()));
    keys_.push_back(key);
    places_.emplace(key, std::prev(keys_.end()));
  }

  // Forgets a key, which is back in the cache.
  void remove(const Key& key) {
    if (keys_.empty()) return;
    const auto found = places_.find(key);
    if (found == places_.end()) return;
    keys_.erase(found->second);
    places_.erase(found);
  }

  // Returns all keys, and forgets them.
  std::vector<Key> take() {
    std::vector<Key> taken(keys_.begin(), keys_.end());
    clear();
    return taken;
  }

  void clear() {
    keys_.clear();
    places_.clear();
  }

  // Keys that are recorded twice or beyond the capacity; 0 unless the record is inconsistent.
  std::int64_t num_excess() const {
    const std::size_t allowed = places_.size() < capacity_ ? places_.size() : capacity_;
    return static_cast<std::int64_t>(keys_.size()) - static_cast<std::int64_t>(allowed);
  }

 private:
  std::size_t capacity_;
  std::list<Key> keys_;
  std::unordered_map<Key, std::list<Key>::iterator, KeyHash> places_;
};

}  // namespace vitcache
