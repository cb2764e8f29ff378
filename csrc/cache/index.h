// The index: the entries of both tiers by key, and their order of eviction.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/entry.h"
#include "cache/key.h"
#include "cache/key_table.h"
#include "cache/policy.h"
#include "cache/tier.h"

namespace vitcache {

// Returns a new policy for a tier of this number of pages.
using MakePolicy = std::function<std::unique_ptr<Policy>(std::int64_t)>;

// The entries of one epoch by key, and one policy per tier. No key is in both tiers. A device entry may have
// a host copy, which is in no policy: the host tier evicts host copies before entries, in the order in which
// they were made.
class Index {
 public:
  // `host` may be null.
  Index(const MakePolicy& make_policy, const Tier& device, const Tier* host);

  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }
  // Returns null if no entry is stored under `key`.
  const EntryPtr* find(const Key& key) const { return entries_.find(key); }
  const EntryPtr* find_host_copy(const Key& key) const;
  Policy& policy_of(const Entry& entry) { return policy_of(*entry.tier); }
  Policy& policy_of(const Tier& tier) { return is_host(tier) ? *host_policy_ : *device_policy_; }

  // Inserts an entry; its key must not be in the index.
  void add(EntryPtr entry);
  // Inserts a device entry whose key is in the host tier. The host entry becomes its host copy.
  void promote(EntryPtr entry);
  // Removes a key that is in the index. Returns its entry, and its host copy if it has one.
  std::vector<EntryPtr> remove(const Key& key);
  // Removes an arbitrary key, and returns as `remove` does. The index must not be empty.
  std::vector<EntryPtr> pop();
  // Evicts an entry or a host copy. Returns whether the entry is worth a copy to the next tier.
  bool evict(const EntryPtr& entry);
  bool is_worth_copy(const Entry& entry) { return policy_of(entry).is_worth_copy(entry); }

  void add_host_copy(EntryPtr copy);
  // Removes and returns the host copy of a key; null if the key has no host copy.
  EntryPtr take_host_copy(const Key& key);
  // Makes the host copy of an evicted device entry a host entry. Returns whether there was one.
  bool restore_host_copy(const Entry& evicted);

  // Calls `visit` with the entries of a tier and its host copies, the next victim first, until `visit`
  // returns false. `visit` must not change the index.
  void visit_victims(const Tier& tier, const std::function<bool(const EntryPtr&)>& visit) const;
  // Calls `visit` with every entry and every host copy.
  void visit_all(const std::function<void(const EntryPtr&)>& visit) const;
  // The keys of a tier's entries, and the keys of the policy of the tier, each in any order.
  std::vector<Key> keys_of(const Tier& tier) const;
  std::vector<Key> keys_of_policy(const Tier& tier) const;
  // Host copies whose key has no device entry; 0 unless the index is inconsistent.
  std::int64_t num_orphaned_copies() const;

 private:
  friend class LedgerInspection;  // tests/native plants faults

  const Policy& policy_of(const Tier& tier) const { return is_host(tier) ? *host_policy_ : *device_policy_; }
  static bool is_host(const Tier& tier) { return tier.layout().is_host; }

  KeyTable entries_;
  std::list<EntryPtr> host_copies_;  // the next victim first
  std::unordered_map<Key, std::list<EntryPtr>::iterator, KeyHash> host_copy_of_;
  std::unique_ptr<Policy> device_policy_;
  std::unique_ptr<Policy> host_policy_;
};

}  // namespace vitcache
