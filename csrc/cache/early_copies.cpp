// Early copies: copies in the host tier of device entries that are evicted next.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache/ledger.h"

namespace vitcache {

PendingPtr Ledger::begin_early_copies(const std::vector<std::int64_t>& num_pages) {
  if (host_ == nullptr) return nullptr;
  std::int64_t count = 0;
  for (const std::int64_t pages : num_pages) count += std::min(pages, device_->num_available() - count);
  const std::vector<EntryPtr> victims = choose_victims(*device_, count);
  // Existing host copies of these victims must not be evicted for the new copies. Until host pages are
  // allocated, they are not in the index, and their pages count as pending.
  std::vector<EntryPtr> copied;
  std::int64_t protected_pages = 0;
  std::vector<EntryPtr> uncopied;
  // An entry has one early copy at a time: if two of them finished out of order, the fence behind the first
  // read would replace the fence behind the second read, which is on the same stream.
  std::unordered_set<const Entry*> in_copy;
  for (const PendingPtr& pending : pending_)
    if (pending->is_early)
      for (const DemotionPtr& demotion : pending->demotions) in_copy.insert(demotion->entry.get());
  for (const EntryPtr& victim : victims) {
    if (EntryPtr copy = index_->take_host_copy(victim->key)) {
      if (copy->leases == 0) protected_pages += copy->num_pages;
      copied.push_back(std::move(copy));
    } else if (in_copy.count(victim.get()) == 0) {
      uncopied.push_back(victim);
    }
  }
  host_->pending_pages += protected_pages;
  auto pending = std::make_shared<Pending>();
  pending->is_early = true;
  // In order of eviction: if host pages run out, the victims that are evicted last have no early copy.
  std::reverse(uncopied.begin(), uncopied.end());
  for (const EntryPtr& victim : uncopied) {
    if (!index_->is_worth_copy(*victim)) continue;
    if (DemotionPtr demotion = demote(victim, pending->fences)) {
      pending->fences.add(victim->written);
      pending->demotions.push_back(std::move(demotion));
    }
  }
  host_->pending_pages -= protected_pages;
  for (EntryPtr& copy : copied) index_->add_host_copy(std::move(copy));
  if (pending->demotions.empty()) return nullptr;
  pending_.insert(pending);
  return pending;
}

void Ledger::finish_early_copies(Pending& pending, const std::optional<Fence>& fence, bool failed) {
  for (const DemotionPtr& demotion : pending.demotions) {
    const EntryPtr& entry = demotion->entry;
    // If the entry was evicted during the copy, its pages may contain other rows: the copy is discarded.
    const EntryPtr* current = index_->find(entry->key);
    const bool is_in_device_tier = current != nullptr && *current == entry;
    if (is_in_device_tier && fence) entry->record_read(*fence);
    if (is_in_device_tier && fence && !failed) {
      index_->add_host_copy(demotion->host_entry(*fence));
      ++counts_.writebacks;
    } else {
      FenceSet fences = pending.fences;
      if (fence) fences.add(*fence);
      demotion->tier->free(demotion->pages, fences);
    }
  }
}

}  // namespace vitcache
