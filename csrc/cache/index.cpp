#include "cache/index.h"

#include <iterator>
#include <utility>

namespace vitcache {

Index::Index(const MakePolicy& make_policy, const Tier& device, const Tier* host)
    : device_policy_(make_policy(device.layout().num_pages)),
      host_policy_(host == nullptr ? nullptr : make_policy(host->layout().num_pages)) {}

const EntryPtr* Index::find_host_copy(const Key& key) const {
  const auto found = host_copy_of_.find(key);
  return found == host_copy_of_.end() ? nullptr : &*found->second;
}

void Index::add(EntryPtr entry) {
  Entry& added = *entry;
  entries_.insert(std::move(entry));
  policy_of(added).insert(added, added.num_pages, added.cost);
}

void Index::promote(EntryPtr entry) {
  EntryPtr host_entry = entries_.take(entry->key);
  host_policy_->remove(*host_entry);
  add_host_copy(std::move(host_entry));
  add(std::move(entry));
}

std::vector<EntryPtr> Index::remove(const Key& key) {
  std::vector<EntryPtr> removed{entries_.take(key)};
  policy_of(*removed.front()).remove(*removed.front());
  if (EntryPtr copy = take_host_copy(removed.front()->key)) removed.push_back(std::move(copy));
  return removed;
}

std::vector<EntryPtr> Index::pop() {
  const Key key = entries_.any()->key;
  return remove(key);
}

bool Index::evict(const EntryPtr& entry) {
  const EntryPtr* copy = find_host_copy(entry->key);
  if (copy != nullptr && *copy == entry) {
    take_host_copy(entry->key);
    return false;
  }
  const bool worth_copy = is_worth_copy(*entry);
  entries_.take(entry->key);
  policy_of(*entry).evict(*entry);
  return worth_copy;
}

void Index::add_host_copy(EntryPtr copy) {
  const Key key = copy->key;
  host_copies_.push_back(std::move(copy));
  host_copy_of_.emplace(key, std::prev(host_copies_.end()));
}

EntryPtr Index::take_host_copy(const Key& key) {
  const auto found = host_copy_of_.find(key);
  if (found == host_copy_of_.end()) return nullptr;
  EntryPtr copy = std::move(*found->second);
  host_copies_.erase(found->second);
  host_copy_of_.erase(found);
  return copy;
}

bool Index::restore_host_copy(const Entry& evicted) {
  EntryPtr copy = take_host_copy(evicted.key);
  if (copy == nullptr) return false;
  copy->hits = 0;
  copy->is_offered = evicted.is_offered;  // it may have been offered since the copy was made
  add(std::move(copy));
  return true;
}

void Index::visit_victims(const Tier& tier, const std::function<bool(const EntryPtr&)>& visit) const {
  if (is_host(tier))
    for (const EntryPtr& copy : host_copies_)
      if (!visit(copy)) return;
  const Policy& policy = policy_of(tier);
  for (PolicyNode* node = policy.first_victim(); node != nullptr; node = policy.next_victim(*node))
    if (!visit(*find(node->key))) return;
}

void Index::visit_all(const std::function<void(const EntryPtr&)>& visit) const {
  entries_.visit(visit);
  for (const EntryPtr& copy : host_copies_) visit(copy);
}

std::vector<Key> Index::keys_of(const Tier& tier) const {
  std::vector<Key> keys;
  entries_.visit([&](const EntryPtr& entry) {
    if (entry->tier == &tier) keys.push_back(entry->key);
  });
  return keys;
}

std::vector<Key> Index::keys_of_policy(const Tier& tier) const {
  std::vector<Key> keys;
  const Policy& policy = policy_of(tier);
  for (const PolicyNode* node = policy.first_victim(); node != nullptr; node = policy.next_victim(*node))
    keys.push_back(node->key);
  return keys;
}

std::int64_t Index::num_orphaned_copies() const {
  std::int64_t orphans = 0;
  for (const EntryPtr& copy : host_copies_) {
    const EntryPtr* entry = find(copy->key);
    orphans += entry == nullptr || is_host(*(*entry)->tier);
  }
  return orphans;
}

}  // namespace vitcache
