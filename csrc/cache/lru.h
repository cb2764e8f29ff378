// The policy "lru": least recently used.
//
// Thread rule: as for every policy (policy.h), the owner makes one call at a time.
#pragma once

#include <cstdint>

#include "cache/policy.h"
#include "cache/queue.h"

namespace vitcache {

// Evicts the key whose insertion or last hit is the longest ago. Every entry is worth a copy: the policy
// knows only the order of the keys. No operation allocates memory or throws.
class Lru final : public Policy {
 public:
  void insert(PolicyNode& node, std::int64_t pages, double cost) override;
  // Makes a node the last victim, in constant time.
  void touch(PolicyNode& node) override;
  void remove(PolicyNode& node) override;
  void evict(PolicyNode& node) override;
  bool is_worth_copy(const PolicyNode& node) const override;
  PolicyNode* first_victim() const override;
  PolicyNode* next_victim(const PolicyNode& node) const override;

 private:
  PolicyQueue queue_;
};

}  // namespace vitcache
