#include "cache/ledger.h"

#include <algorithm>
#include <utility>

namespace vitcache {
namespace {

// A caller of `put` gets to know that its rows were not inserted; promotions and fetches are only tried.
bool counts_as_rejected(const Pending& pending) { return pending.source == nullptr && !pending.is_fetch; }

}  // namespace

Ledger::Ledger(MakePolicy make_policy, std::shared_ptr<Tier> device, std::shared_ptr<Tier> host,
               std::int64_t num_recorded)
    : make_policy_(std::move(make_policy)),
      device_(std::move(device)),
      host_(std::move(host)),
      index_(std::make_unique<Index>(make_policy_, *device_, host_.get())),
      evicted_(num_recorded) {}

EntryPtr Ledger::pin(const Key& key, std::int64_t num_rows, std::int64_t row_width) {
  const EntryPtr* found = index_->find(key);
  if (found != nullptr && ((num_rows >= 0 && (*found)->num_rows != num_rows) ||
                           (row_width >= 0 && (*found)->row_width() != row_width))) {
    drop(key);
    found = nullptr;
  }
  if (found == nullptr || (*found)->is_moving) {
    ++counts_.misses;
    return nullptr;
  }
  Entry& entry = **found;
  if (++entry.hits >= offers_.hits()) offer(entry);
  index_->policy_of(entry).touch(entry);
  Tier& tier = *entry.tier;
  ++tier.hits.hits;
  tier.hits.bytes += entry.num_bytes();
  tier.hits.saved_ms += entry.cost;
  pin_entry(entry);
  return *found;
}

EntryPtr Ledger::peek(const Key& key, std::int64_t num_rows, std::int64_t row_width, bool is_on_host) {
  const EntryPtr* found = index_->find(key);
  if (is_on_host && found != nullptr && (*found)->tier != host_.get()) found = index_->find_host_copy(key);
  if (found == nullptr || (*found)->is_moving || (*found)->num_rows != num_rows ||
      (*found)->row_width() != row_width)
    return nullptr;
  pin_entry(**found);
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

void Ledger::abandon(PendingPtr pending, std::vector<std::int64_t> streams) {
  if (!pending->is_open) return;
  if (streams.empty() || is_closed_)  // a queued write would keep the memory of its tier alive
    finish(pending, std::nullopt, true);
  else
    abandoned_.push_back({std::move(pending), std::move(streams)});
}

bool Ledger::report_corrupt(const EntryPtr& entry) {
  HitCounts& hits = entry->tier->hits;
  --hits.hits;
  hits.bytes -= entry->num_bytes();
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

bool Ledger::discard(const Key& key) {
  reject([&key](const Pending& pending) { return pending.is_fetch && pending.key == key; });
  return remove(key);
}

// Drops the entry of a key, also one that is being demoted. Returns whether there was one.
bool Ledger::remove(const Key& key) {
  // Without its place here, a demotion does not bring the rows back when it ends.
  const bool was_being_demoted = pending_demotions_.erase(key) > 0;
  if (was_being_demoted) evicted_.add(key);
  const bool was_found = contains(key);
  if (was_found) drop(key);
  return was_found || was_being_demoted;
}

std::int64_t Ledger::forget(const Key& key) {
  const Key forgotten = key;  // `key` may be a part of the entry
  reject([&forgotten](const Pending& pending) { return pending.key == forgotten; });
  return remove(forgotten) ? 1 : 0;
}

std::int64_t Ledger::forget_tenant(const Key& tenant) {
  const Key forgotten = tenant;
  reject([&forgotten](const Pending& pending) { return pending.tenant == forgotten; });
  std::vector<Key> keys;
  for (const auto& [key, demotion] : pending_demotions_)
    if (demotion->entry->tenant == forgotten) keys.push_back(key);
  index_->visit_all([&](const EntryPtr& entry) {
    if (entry->tenant == forgotten && *index_->find(entry->key) == entry) keys.push_back(entry->key);
  });
  // So that the order in which the keys are recorded as evicted does not depend on the tables.
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) { return a.words < b.words; });
  for (const Key& key : keys) remove(key);
  return static_cast<std::int64_t>(keys.size());
}

// Rejects the pending writes, promotions and fetches that are meant.
void Ledger::reject(const std::function<bool(const Pending&)>& is_meant) {
  for (const PendingPtr& pending : pending_)
    if (pending->inserts_rows() && is_meant(*pending)) pending->is_rejected = true;
}

void Ledger::offer(Entry& entry) {
  offers_.add(entry);
  if (offers_.size() > 0) num_due_releases_ = 0;
}

void Ledger::offer(const Key& key) {
  const EntryPtr* found = index_->find(key);
  if (found == nullptr) return;
  (*found)->least_hits_of_offer = 0;  // the caller asks for it, so it does not wait for hits
  offer(**found);
}

std::vector<Offer> Ledger::take_offers() {
  num_due_releases_ = kReleasesPerBatch;
  return offers_.take();
}

void Ledger::retract_offer(const Key& key) {
  if (const EntryPtr* found = index_->find(key)) Offers::retract(**found);
  const auto demoted = pending_demotions_.find(key);
  if (demoted != pending_demotions_.end()) Offers::retract(*demoted->second->entry);
}

PendingPtr Ledger::begin_write(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                               std::int64_t epoch, WriteTo target, const Key& tenant, bool is_offer) {
  const bool to_device = target != WriteTo::kHost, to_host = target != WriteTo::kDevice;
  const std::int64_t count = device_->pages_for(num_rows, row_width);  // in each tier
  if (epoch != epoch_ || (to_device && count > device_->num_available()) ||
      (to_host && count > host_->num_available())) {
    ++counts_.rejections;
    return nullptr;
  }
  if (to_device) make_room(*device_, count, key);
  if (to_host) make_room(*host_, count, key);
  PendingPtr pending = make_pending(key, num_rows, row_width, cost, tenant);
  pending->is_offer = is_offer;
  if (to_device) {
    allocate_device_pages(*pending, to_host);
  } else {
    pending->tier = host_;
    pending->memory = host_->memory();
    pending->pages = allocate_host_pages(count, pending->fences);
  }
  pending_.insert(pending);
  return pending;
}

PendingPtr Ledger::begin_fetch(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                               std::int64_t epoch, const Key& tenant, bool may_evict) {
  if (host_ == nullptr || epoch != epoch_ || contains(key) || pending_demotions_.count(key) > 0)
    return nullptr;
  const std::int64_t count = host_->pages_for(num_rows, row_width);
  if (count > host_->num_available()) return nullptr;
  if (!may_evict) {
    reclaim(*host_, count);
    if (count > host_->num_free()) return nullptr;
  }
  PendingPtr pending = make_pending(key, num_rows, row_width, cost, tenant);
  pending->is_fetch = true;
  pending->tier = host_;
  pending->memory = host_->memory();
  pending->pages = allocate_host_pages(count, pending->fences);
  pending_.insert(pending);
  return pending;
}

// Frees the pages of the entry that new rows replace, before other entries are evicted, if they are needed.
void Ledger::make_room(const Tier& tier, std::int64_t count, const Key& key) {
  reclaim(tier, count);
  const EntryPtr* old = index_->find(key);
  if (old != nullptr && (*old)->tier != &tier) old = index_->find_host_copy(key);
  if (old != nullptr && (*old)->tier == &tier && (*old)->leases == 0 && tier.num_free() < count) drop(key);
}

PendingPtr Ledger::begin_promotion(const EntryPtr& source, bool is_contiguous) {
  const EntryPtr* current = index_->find(source->key);
  const bool is_host_entry = current != nullptr && *current == source && source->tier == host_.get();
  if (!is_host_entry || source->num_pages > device_->num_available()) return nullptr;
  PendingPtr pending =
      make_pending(source->key, source->num_rows, source->row_width(), source->cost, source->tenant);
  pending->source = source;
  if (!is_contiguous)
    allocate_device_pages(*pending, false);
  else if (!allocate_device_run(*pending))
    return nullptr;
  pending_.insert(pending);
  return pending;
}

bool Ledger::finish(const PendingPtr& pending, const std::optional<Fence>& fence, bool failed) {
  if (!close_pending(pending)) return false;
  if (pending->is_early)
    finish_early_copies(*pending, fence, failed);
  else if (pending->is_compaction)
    finish_compaction(*pending, fence, failed);
  else
    return finish_write(*pending, fence, failed);
  return false;
}

EntryPtr Ledger::finish_and_pin(const PendingPtr& pending, const std::optional<Fence>& fence) {
  if (!finish(pending, fence, false)) return nullptr;
  const EntryPtr& entry = *index_->find(pending->key);
  pin_entry(*entry);
  return entry;
}

bool Ledger::finish_write(Pending& pending, const std::optional<Fence>& fence, bool failed) {
  HostCopy* const copy = pending.host_copy ? &*pending.host_copy : nullptr;
  if (!fence || failed || pending.epoch != epoch_ || (copy != nullptr && !copy->copied)) {
    // Perhaps no stream has waited for these fences yet, so the freed pages keep all of them.
    FenceSet fences = pending.fences;
    if (fence) fences.add(*fence);
    if (copy != nullptr) {
      if (copy->copied) fences.add(*copy->copied);
      FenceSet copy_fences = fences;
      copy_fences.add_all(copy->fences);
      copy->tier->free(copy->pages, copy_fences);
    }
    for (auto demotion = pending.demotions.rbegin(); demotion != pending.demotions.rend(); ++demotion) {
      ++counts_.evictions;
      if (end_demotion(*demotion)) evicted_.add((*demotion)->entry->key);
      (*demotion)->tier->free((*demotion)->pages, fences);
    }
    pending.tier->free(pending.leftover_pages, fences);
    pending.tier->free(pending.pages, fences);
    counts_.rejections += !failed && counts_as_rejected(pending);
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
  if (!is_wanted(pending)) {
    FenceSet written;
    written.add(*fence);
    if (copy != nullptr) {
      written.add(*copy->copied);  // it reads `pages`
      copy->tier->free(copy->pages, written);
    }
    pending.tier->free(pending.pages, written);
    counts_.rejections += counts_as_rejected(pending);
    return false;
  }
  const auto make_entry = [&pending](const std::shared_ptr<Tier>& tier, const Pages& pages,
                                     const Fence& written) {
    auto made = std::make_shared<Entry>(pending.key, pending.cost, tier,
                                        tier->describe(pages, pending.num_rows, pending.row_width), written);
    made->tenant = pending.tenant;
    return made;
  };
  EntryPtr entry = make_entry(pending.tier, pending.pages, *fence);
  if (pending.source != nullptr) {
    entry->is_offered = pending.source->is_offered;
    index_->promote(std::move(entry));
    ++counts_.promotions;
    return true;
  }
  pending_demotions_.erase(pending.key);
  if (contains(pending.key)) drop(pending.key);
  evicted_.remove(pending.key);
  if (pending.is_fetch)
    entry->is_offered = true;
  else if (pending.is_offer || offers_.hits() == 0)
    offer(*entry);
  if (copy == nullptr) {
    entry->checksum = pending.checksum;
    index_->add(std::move(entry));
  } else {
    entry->record_read(*copy->copied);
    index_->add(std::move(entry));
    EntryPtr host_copy = make_entry(copy->tier, copy->pages, *copy->copied);
    host_copy->checksum = pending.checksum;
    index_->add_host_copy(std::move(host_copy));
    ++counts_.writebacks;
  }
  ++counts_.insertions;
  return true;
}

// Whether the rows of a finished write may be inserted: a promotion only while its entry is in the host tier,
// and a fetch only if no other caller has inserted rows under its key.
bool Ledger::is_wanted(const Pending& pending) const {
  if (pending.is_rejected) return false;
  if (pending.is_fetch) return !contains(pending.key);
  if (pending.source == nullptr) return true;
  const EntryPtr* current = index_->find(pending.key);
  return current != nullptr && *current == pending.source;
}

void Ledger::advance() {
  if (index_->size() > 0) {
    counts_.evictions += index_->size();
    stale_.push_back(std::move(index_));
    index_ = std::make_unique<Index>(make_policy_, *device_, host_.get());
  }
  pending_demotions_.clear();
  evicted_.clear();
  take_offers();
  ++epoch_;
}

void Ledger::clear() {
  advance();
  reclaim_all();
}

void Ledger::close() {
  if (is_closed_) return;
  advance();  // pending writes are of an earlier epoch now, so they are rejected
  is_closed_ = true;
  stale_.clear();
  dropped_.clear();
  releases_.clear();
  for (const Abandoned& each : std::exchange(abandoned_, {})) finish(each.pending, std::nullopt, true);
  device_->forget_memory();
  if (host_ != nullptr) host_->forget_memory();
}

PendingPtr Ledger::make_pending(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                                const Key& tenant) const {
  auto pending = std::make_shared<Pending>();
  pending->epoch = epoch_;
  pending->key = key;
  pending->num_rows = num_rows;
  pending->row_width = row_width;
  pending->cost = cost;
  pending->tenant = tenant;
  pending->tier = device_;
  pending->memory = device_->memory();
  return pending;
}

// Allocates the device pages of a pending write, and evicts or demotes victims. With `has_host_copy`, it also
// allocates the pages of the host copy, before the demotions take host pages.
void Ledger::allocate_device_pages(Pending& pending, bool has_host_copy) {
  const std::int64_t count = device_->pages_for(pending.num_rows, pending.row_width);
  const std::vector<EntryPtr> victims = choose_victims(*device_, count);
  FenceSet& fences = pending.fences;
  Pages pages = device_->allocate(std::min(count, device_->num_free()), fences);
  std::vector<EntryPtr> uncopied;  // victims that are worth a copy to the host tier and have none
  for (auto victim = victims.rbegin(); victim != victims.rend(); ++victim) {
    const bool is_worth_copy = index_->evict(*victim);
    fences.add_all((*victim)->fences());
    if (index_->restore_host_copy(**victim))
      ++counts_.demotions;
    else if (is_worth_copy)
      uncopied.push_back(*victim);
    else
      count_eviction((*victim)->key);
  }
  if (has_host_copy) {
    HostCopy& copy = pending.host_copy.emplace();
    copy.tier = host_;
    copy.pages = allocate_host_pages(count, copy.fences);
  }
  for (auto victim = uncopied.rbegin(); victim != uncopied.rend(); ++victim) {
    if (DemotionPtr demotion = demote(*victim, fences)) {
      pending_demotions_[(*victim)->key] = demotion;
      pending.demotions.push_back(std::move(demotion));
    } else {
      count_eviction((*victim)->key);
    }
  }
  for (const EntryPtr& victim : victims)
    pages.insert(pages.end(), victim->page_numbers().begin(), victim->page_numbers().end());
  // In ascending order, so that one copy moves a run of adjacent pages.
  std::sort(pages.begin(), pages.end());
  device_->pending_pages += static_cast<std::int64_t>(pages.size());
  pending.leftover_pages.assign(pages.begin() + count, pages.end());
  pages.resize(static_cast<std::size_t>(count));
  pending.pages = std::move(pages);
}

// Evicts host entries and host copies, and allocates `count` host pages, which must be available.
Pages Ledger::allocate_host_pages(std::int64_t count, FenceSet& fences) {
  for (const EntryPtr& victim : choose_victims(*host_, count)) {
    const EntryPtr* copy = index_->find_host_copy(victim->key);
    if (copy == nullptr || *copy != victim) count_eviction(victim->key);
    index_->evict(victim);
    free(victim);
  }
  Pages pages = host_->allocate(count, fences);
  host_->pending_pages += count;
  return pages;
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
  return std::make_shared<Demotion>(Demotion{entry, host_, allocate_host_pages(count, fences), nullptr});
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

void Ledger::reclaim_all() {
  while (!stale_.empty()) reclaim_one();
}

// Removes the entry of a key, and its host copy, from the cache.
void Ledger::drop(const Key& key) {
  const Key dropped_key = key;  // `key` may be a part of the entry
  count_eviction(dropped_key);
  for (const EntryPtr& entry : index_->remove(dropped_key)) free(entry);
}

void Ledger::count_eviction(const Key& key) {
  ++counts_.evictions;
  evicted_.add(key);
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
