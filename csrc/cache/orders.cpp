// The steps of a caller that chooses itself which entries leave a tier: they use free pages only.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "cache/ledger.h"

namespace vitcache {

PendingPtr Ledger::begin_contiguous_write(const Key& key, std::int64_t num_rows, std::int64_t row_width,
                                          double cost, std::int64_t epoch, const Key& tenant, bool is_offer) {
  if (epoch != epoch_ || device_->pages_for(num_rows, row_width) > device_->layout().num_pages) {
    ++counts_.rejections;
    return nullptr;
  }
  PendingPtr pending = make_pending(key, num_rows, row_width, cost, tenant);
  pending->is_offer = is_offer;
  if (!allocate_device_run(*pending)) return nullptr;
  pending_.insert(pending);
  return pending;
}

// Allocates the device pages of a pending write as one run of free pages. Frees all entries of earlier epochs
// first, because their pages may extend a run. Returns false if no run is long enough.
bool Ledger::allocate_device_run(Pending& pending) {
  reclaim_all();
  const std::int64_t count = device_->pages_for(pending.num_rows, pending.row_width);
  pending.pages = device_->allocate_run(count, pending.fences);
  device_->pending_pages += static_cast<std::int64_t>(pending.pages.size());
  return !pending.pages.empty();
}

PendingPtr Ledger::begin_copy_to_host(const Key& key) {
  const EntryPtr* found = index_->find(key);
  if (host_ == nullptr || found == nullptr || (*found)->tier == host_.get() || (*found)->is_moving ||
      index_->find_host_copy(key) != nullptr)
    return nullptr;
  const EntryPtr entry = *found;
  // An entry has one early copy at a time (early_copies.cpp).
  const auto copies_entry = [&entry](const DemotionPtr& copy) { return copy->entry == entry; };
  for (const PendingPtr& pending : pending_)
    if (std::any_of(pending->demotions.begin(), pending->demotions.end(), copies_entry)) return nullptr;
  reclaim(*host_, entry->num_pages);
  if (entry->num_pages > host_->num_free()) return nullptr;
  auto pending = std::make_shared<Pending>();
  pending->is_early = true;
  pending->demotions.push_back(demote(entry, pending->fences));
  pending->fences.add(entry->written);
  pending_.insert(pending);
  return pending;
}

bool Ledger::has_host_copy(const Key& key) const { return index_->find_host_copy(key) != nullptr; }

bool Ledger::is_demotable(const Key& key) const {
  const EntryPtr* found = index_->find(key);
  return found != nullptr && (*found)->tier == device_.get() && (*found)->leases == 0;
}

bool Ledger::demote_to_copy(const Key& key) {
  if (!is_demotable(key) || !has_host_copy(key)) return false;
  const EntryPtr entry = *index_->find(key);
  index_->evict(entry);
  index_->restore_host_copy(*entry);
  ++counts_.demotions;
  free(entry);
  return true;
}

bool Ledger::discard_from_host(const Key& key) {
  const EntryPtr* found = index_->find(key);
  if (found == nullptr || (*found)->tier == host_.get()) return discard(key);
  const EntryPtr copy = index_->take_host_copy(key);
  if (copy == nullptr) return false;
  free(copy);
  return true;
}

}  // namespace vitcache
