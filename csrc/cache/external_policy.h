// A policy that is decided outside of the core, for policies that users write in Python. The core must never
// call Python, so this policy records the calls as events and evicts in the order that it was given last.
//
// Use, by the owner of the policy: `take_events`; pass the events to the Python policy without any lock of
// the core; ask it for its victims; `set_order`. Keys may be inserted, hit and removed between these calls.
//
// Thread rule: as for every policy (policy.h), the owner makes one call at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/policy.h"
#include "cache/queue.h"

namespace vitcache {

struct PolicyEvent {
  enum class Kind { kInsert, kTouch, kRemove, kEvict };

  Kind kind;
  Key key;
  std::int64_t pages = 0;  // of an insertion
  double cost = 0;         // of an insertion
  std::int64_t hits = 0;   // of a touch: the number of hits, which no other event separates
};

class ExternalPolicy final : public Policy {
 public:
  void insert(PolicyNode& node, std::int64_t pages, double cost) override;
  void touch(PolicyNode& node) override;
  void remove(PolicyNode& node) override;
  void evict(PolicyNode& node) override;
  // The flag that `set_order` gave the key; true for a key that is not in the order.
  bool is_worth_copy(const PolicyNode& node) const override;
  // First the keys of the order that `set_order` gave and that are still in the policy. Then the other keys;
  // the key whose insertion or last hit is the longest ago is the first of these.
  PolicyNode* first_victim() const override;
  PolicyNode* next_victim(const PolicyNode& node) const override;

  // Returns all events since the last call, the oldest first, and forgets them. Does not throw. Adjacent hits
  // of one key are one event. An owner that also bounds the log's memory calls this when `num_events` is
  // large.
  std::vector<PolicyEvent> take_events() noexcept;
  std::size_t num_events() const { return events_.size(); }

  // Replaces the order. The first element is the next victim; the flag says whether the key is worth a copy
  // to the next tier. Ignores keys that are not in the policy, and all elements of a key but the first. A key
  // that is removed and inserted again later is not in the order. Throws std::bad_alloc, and then keeps the
  // previous order.
  void set_order(const std::vector<std::pair<Key, bool>>& order);

 private:
  static constexpr std::int64_t kUnordered = -1;

  struct Place {
    PolicyNode* node;  // null if the node has been removed
    bool is_worth_copy;
  };

  void log(PolicyEvent::Kind kind, const Key& key);
  void unlink(PolicyNode& node);
  PolicyNode* find_ordered(std::size_t place) const;
  static PolicyNode* find_unordered(PolicyNode* node);

  std::unordered_map<Key, PolicyNode*, KeyHash> nodes_;
  PolicyQueue queue_;         // all nodes, by their insertion or last hit
  std::vector<Place> order_;  // `PolicyNode::queue` is a node's index, or `kUnordered`
  std::size_t first_ = 0;     // no place before it has a node
  std::vector<PolicyEvent> events_;
};

}  // namespace vitcache
