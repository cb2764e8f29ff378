#include "cache/ledger.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace vitcache {

Ledger::Ledger(MakePolicy make_policy, std::shared_ptr<Tier> device, std::shared_ptr<Tier> host)
    : make_policy_(std::move(make_policy)),
      device_(std::move(device)),
      host_(std::move(host)),
      index_(std::make_unique<Index>(make_policy_, *device_, host_.get())) {}

EntryPtr Ledger::pin(const Key& key, std::int64_t num_rows) {
  const EntryPtr* found = index_->find(key);
  if (found != nullptr && num_rows >= 0 && (*found)->num_rows != num_rows) {
    drop(key);
    found = nullptr;
  }
  if (found == nullptr) {
    ++counts_.misses;
    return nullptr;
  }
  Entry& entry = **found;
  ++entry.hits;
  index_->policy_of(entry).touch(entry);
  Tier& tier = *entry.tier;
  ++tier.hits.hits;
  tier.hits.rows += entry.num_rows;
  tier.hits.saved_ms += entry.cost;
  if (entry.leases == 0) tier.leased_pages += entry.num_pages;
  ++entry.leases;
  ++num_leases_;
  return *found;
}

void Ledger::unpin(Entry& entry) {
  --num_leases_;
  if (--entry.leases > 0) return;
  entry.tier->leased_pages -= entry.num_pages;
  if (!entry.is_dropped) return;
  const auto found = dropped_.find(&entry);
  if (found == dropped_.end()) return;  // the ledger was closed
  const EntryPtr dropped = std::move(found->second);
  dropped_.erase(found);
  free(dropped);
}

void Ledger::release(EntryPtr entry, std::vector<std::int64_t> streams) {
  if (streams.empty())
    unpin(*entry);
  else if (!is_closed_)  // a queued release would keep the memory of its tier alive
    releases_.push_back({std::move(entry), std::move(streams)});
}

bool Ledger::report_corrupt(const EntryPtr& entry) {
  HitCounts& hits = entry->tier->hits;
  --hits.hits;
  hits.rows -= entry->num_rows;
  hits.saved_ms -= entry->cost;
  ++counts_.misses;
  // If `entry` is a host copy now, its device entry is dropped, too: that entry may have the wrong rows.
  const EntryPtr* current = index_->find(entry->key);
  const EntryPtr* copy = index_->find_host_copy(entry->key);
  if ((current == nullptr || *current != entry) && (copy == nullptr || *copy != entry)) return false;
  ++counts_.corruptions;
  drop(entry->key);
  return true;
}

PendingPtr Ledger::begin_write(const Key& key, std::int64_t num_rows, double cost, std::int64_t epoch) {
  const std::int64_t count = device_->pages_for(num_rows);
  if (epoch != epoch_ || count > device_->num_available()) {
    ++counts_.rejections;
    return nullptr;
  }
  reclaim(*device_, count);
  // The new rows take the pages of the entry that they replace before other entries are evicted.
  const EntryPtr* old = index_->find(key);
  if (old != nullptr && (*old)->tier == device_.get() && (*old)->leases == 0 && device_->num_free() < count)
    drop(key);
  return allocate_pages(key, num_rows, cost, nullptr);
}

PendingPtr Ledger::begin_promotion(const EntryPtr& source) {
  const EntryPtr* current = index_->find(source->key);
  const bool is_host_entry = current != nullptr && *current == source && source->tier == host_.get();
  if (!is_host_entry || source->num_pages > device_->num_available()) return nullptr;
  return allocate_pages(source->key, source->num_rows, source->cost, source);
}

PendingPtr Ledger::begin_early_copies(const std::vector<std::int64_t>& num_rows) {
  if (host_ == nullptr) return nullptr;
  std::int64_t count = 0;
  for (const std::int64_t rows : num_rows)
    count += std::min(device_->pages_for(rows), device_->num_available() - count);
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

bool Ledger::finish(const PendingPtr& pending, const std::optional<Fence>& fence, bool failed) {
  if (!close_pending(pending)) return false;
  if (!pending->is_early) return finish_write(*pending, fence, failed);
  finish_early_copies(*pending, fence, failed);
  return false;
}

bool Ledger::finish_write(Pending& pending, const std::optional<Fence>& fence, bool failed) {
  if (!fence || failed || pending.epoch != epoch_) {
    // Perhaps no stream has waited for these fences yet, so the freed pages keep all of them.
    FenceSet fences = pending.fences;
    if (fence) fences.add(*fence);
    for (auto demotion = pending.demotions.rbegin(); demotion != pending.demotions.rend(); ++demotion) {
      end_demotion(*demotion);
      (*demotion)->tier->free((*demotion)->pages, fences);
      ++counts_.evictions;
    }
    pending.tier->free(pending.leftover_pages, fences);
    pending.tier->free(pending.pages, fences);
    counts_.rejections += !failed && pending.source == nullptr;
    return false;
  }
  for (auto demotion = pending.demotions.rbegin(); demotion != pending.demotions.rend(); ++demotion) {
    if (end_demotion(*demotion)) {
      index_->add((*demotion)->host_entry(pending.copied.value_or(*fence)));
      ++counts_.demotions;
      ++counts_.writebacks;
    } else {
      (*demotion)->tier->free((*demotion)->pages, pending.fences);
      ++counts_.evictions;
    }
  }
  pending.tier->free(pending.leftover_pages, pending.fences);
  if (pending.source != nullptr) {
    const EntryPtr* current = index_->find(pending.key);
    if (current == nullptr || *current != pending.source) {
      FenceSet written;
      written.add(*fence);
      pending.tier->free(pending.pages, written);
      return false;
    }
  }
  auto entry = std::make_shared<Entry>(pending.key, pending.cost, pending.tier,
                                       pending.tier->describe(pending.pages, pending.num_rows), *fence);
  if (pending.source != nullptr) {
    index_->promote(std::move(entry));
    ++counts_.promotions;
    return true;
  }
  pending_demotions_.erase(pending.key);
  if (contains(pending.key)) drop(pending.key);
  index_->add(std::move(entry));
  ++counts_.insertions;
  return true;
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

void Ledger::advance() {
  if (index_->size() > 0) {
    counts_.evictions += index_->size();
    stale_.push_back(std::move(index_));
    index_ = std::make_unique<Index>(make_policy_, *device_, host_.get());
  }
  pending_demotions_.clear();
  ++epoch_;
}

void Ledger::clear() {
  advance();
  while (!stale_.empty()) reclaim_one();
}

void Ledger::close() {
  if (is_closed_) return;
  advance();  // pending writes are of an earlier epoch now, so they are rejected
  is_closed_ = true;
  stale_.clear();
  dropped_.clear();
  releases_.clear();
  device_->forget_memory();
  if (host_ != nullptr) host_->forget_memory();
}

PendingPtr Ledger::allocate_pages(const Key& key, std::int64_t num_rows, double cost, EntryPtr source) {
  const std::int64_t count = device_->pages_for(num_rows);
  const std::vector<EntryPtr> victims = choose_victims(*device_, count);
  auto pending = std::make_shared<Pending>();
  FenceSet& fences = pending->fences;
  Pages pages = device_->allocate(std::min(count, device_->num_free()), fences);
  std::vector<EntryPtr> uncopied;  // victims that are worth a copy to the host tier and have none
  for (auto victim = victims.rbegin(); victim != victims.rend(); ++victim) {
    const bool is_worth_copy = index_->evict(*victim);
    fences.add_all((*victim)->fences());
    if (index_->restore_host_copy((*victim)->key))
      ++counts_.demotions;
    else if (is_worth_copy)
      uncopied.push_back(*victim);
    else
      ++counts_.evictions;
  }
  for (auto victim = uncopied.rbegin(); victim != uncopied.rend(); ++victim) {
    if (DemotionPtr demotion = demote(*victim, fences)) {
      pending_demotions_[(*victim)->key] = demotion;
      pending->demotions.push_back(std::move(demotion));
    } else {
      ++counts_.evictions;
    }
  }
  for (const EntryPtr& victim : victims)
    pages.insert(pages.end(), victim->page_numbers().begin(), victim->page_numbers().end());
  // In ascending order, so that one copy moves a run of adjacent pages.
  std::sort(pages.begin(), pages.end());
  device_->pending_pages += static_cast<std::int64_t>(pages.size());
  pending->epoch = epoch_;
  pending->key = key;
  pending->num_rows = num_rows;
  pending->cost = cost;
  pending->tier = device_;
  pending->memory = device_->memory();
  pending->leftover_pages.assign(pages.begin() + count, pages.end());
  pages.resize(static_cast<std::size_t>(count));
  pending->pages = std::move(pages);
  pending->source = std::move(source);
  pending_.insert(pending);
  return pending;
}

bool Ledger::close_pending(const PendingPtr& pending) {
  if (!pending->is_open) return false;
  pending->is_open = false;
  pending_.erase(pending);
  device_->pending_pages -= pending->num_pages_of(*device_);
  if (host_ != nullptr) host_->pending_pages -= pending->num_pages_of(*host_);
  return true;
}

// Removes a pending demotion. Returns false if it is superseded: rows were inserted under its key after it
// began, even if those rows have left the cache since, or the epoch has changed.
bool Ledger::end_demotion(const DemotionPtr& demotion) {
  const auto found = pending_demotions_.find(demotion->entry->key);
  if (found == pending_demotions_.end() || found->second != demotion) return false;
  pending_demotions_.erase(found);
  return true;
}

// Chooses entries whose eviction leaves `count` pages free, in reverse order of eviction. `count` pages must
// be available. Frees entries of earlier epochs. The caller evicts the chosen entries.
std::vector<EntryPtr> Ledger::choose_victims(Tier& tier, std::int64_t count) {
  reclaim(tier, count);
  std::int64_t missing = count - tier.num_free();
  std::vector<EntryPtr> chosen;
  if (missing <= 0) return chosen;
  index_->visit_victims(tier, [&](const EntryPtr& entry) {
    if (entry->leases == 0) {
      chosen.push_back(entry);
      missing -= entry->num_pages;
    }
    return missing > 0;
  });
  // A large victim may suffice without smaller victims that were chosen before it.
  std::vector<EntryPtr> needed;
  for (auto entry = chosen.rbegin(); entry != chosen.rend(); ++entry) {
    if (missing + (*entry)->num_pages <= 0)
      missing += (*entry)->num_pages;
    else
      needed.push_back(std::move(*entry));
  }
  return needed;
}

// Allocates host pages for a device entry, and adds their fences to `fences`. Evicts host entries. Returns
// null if too few host pages are available.
DemotionPtr Ledger::demote(const EntryPtr& entry, FenceSet& fences) {
  const std::int64_t count = entry->num_pages;
  if (host_ == nullptr || count > host_->num_available()) return nullptr;
  for (const EntryPtr& victim : choose_victims(*host_, count)) {
    const EntryPtr* copy = index_->find_host_copy(victim->key);
    counts_.evictions += copy == nullptr || *copy != victim;
    index_->evict(victim);
    free(victim);
  }
  Pages pages = host_->allocate(count, fences);
  host_->pending_pages += count;
  return std::make_shared<Demotion>(Demotion{entry, host_, std::move(pages), nullptr});
}

// Frees entries of earlier epochs until `count` pages are free or all those entries are freed.
void Ledger::reclaim(const Tier& tier, std::int64_t count) {
  while (!stale_.empty() && tier.num_free() < count) reclaim_one();
}

void Ledger::reclaim_one() {
  if (stale_.back()->size() > 0)
    for (const EntryPtr& entry : stale_.back()->pop()) free(entry);
  else
    stale_.pop_back();
}

// Removes the entry of a key, and its host copy, from the cache.
void Ledger::drop(const Key& key) {
  ++counts_.evictions;
  const Key dropped_key = key;  // `key` may be a part of the entry
  for (const EntryPtr& entry : index_->remove(dropped_key)) free(entry);
}

// Frees the pages of an entry that is in no index. If it is leased, its last release frees them.
void Ledger::free(const EntryPtr& entry) {
  if (entry->leases > 0) {
    entry->is_dropped = true;
    dropped_.emplace(entry.get(), entry);
  } else {
    entry->tier->free(entry->page_numbers(), entry->fences());
  }
}

std::vector<const Tier*> Ledger::tiers() const {
  std::vector<const Tier*> tiers{device_.get()};
  if (host_ != nullptr) tiers.push_back(host_.get());
  return tiers;
}

}  // namespace vitcache
