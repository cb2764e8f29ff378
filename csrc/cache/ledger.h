// The ledger of a cache: its entries, the pages that they own, pins, pending writes, claims and counts.
//
// It chooses victims and records each change. It takes no lock, copies no rows, makes no CUDA call
// and never calls back: each method is one step from one consistent state to the next. The module runs every
// method under the GIL, so no other thread, signal handler or finalizer sees a state in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cache/claims.h"
#include "cache/entry.h"
#include "cache/eviction_record.h"
#include "cache/index.h"
#include "cache/key.h"
#include "cache/offers.h"
#include "cache/pending.h"
#include "cache/tier.h"

namespace vitcache {

// Counts since the cache was made; `vitcache.CacheStats` defines them.
struct Counts {
  std::int64_t misses = 0;
  std::int64_t insertions = 0;
  std::int64_t evictions = 0;
  std::int64_t demotions = 0;
  std::int64_t writebacks = 0;
  std::int64_t promotions = 0;
  std::int64_t rejections = 0;
  std::int64_t corruptions = 0;
};

// A released lease that streams have read: its entry keeps its pin until fences behind the reads exist.
struct Release {
  EntryPtr entry;
  std::vector<std::int64_t> streams;
};

// Pending pages whose owner was destroyed while streams may still write them.
struct Abandoned {
  PendingPtr pending;
  std::vector<std::int64_t> streams;
};

// The tiers that rows are written to. Rows in both tiers are a device entry with a host copy.
enum class WriteTo { kDevice, kHost, kBoth };

class Ledger {
 public:
  // `host` may be null. The keys of the last `num_recorded` entries that left the cache are kept.
  Ledger(MakePolicy make_policy, std::shared_ptr<Tier> device, std::shared_ptr<Tier> host,
         std::int64_t num_recorded = 0);

  // Looks up and pins an entry. An entry without exactly `num_rows` rows of `row_width` elements is dropped,
  // and the look-up is a miss; -1 stands for any number. Returns null for a miss.
  EntryPtr pin(const Key& key, std::int64_t num_rows, std::int64_t row_width = -1);
  // Pins an entry for a copy to a tier below: counts neither a hit nor a miss, does not change the order of
  // eviction, and drops nothing. Returns null where `pin` would.
  // With `is_on_host`, it pins the host entry or the host copy, and no device entry.
  EntryPtr peek(const Key& key, std::int64_t num_rows, std::int64_t row_width, bool is_on_host = false);
  // Pins an entry that is in the index, or that is pinned already. Counts no hit.
  void pin_entry(Entry& entry) {
    if (entry.leases == 0) entry.tier->leased_pages += entry.num_pages;
    ++entry.leases;
    ++num_leases_;
  }
  // Releases a pin. The last release of a dropped entry frees its pages.
  void unpin(Entry& entry);
  // Releases a pin after reads on `streams`: at once without a stream, else when the release is taken.
  void release(EntryPtr entry, std::vector<std::int64_t> streams);
  std::vector<Release>& releases() { return releases_; }
  // Keeps the pages of a pending write until a caller finishes it with a fence behind the streams.
  void abandon(PendingPtr pending, std::vector<std::int64_t> streams);
  std::vector<Abandoned>& abandoned() { return abandoned_; }

  // Counts the hit on `entry` as a miss, and drops the entry: its rows do not match their checksum. Returns
  // false if the entry has left the cache: another caller has reported it.
  bool report_corrupt(const EntryPtr& entry);

  // Drops the entry of a key, also one that is being demoted. Returns whether there was one. A pending fetch
  // of the key inserts nothing, but a pending write may still insert rows under the key.
  bool discard(const Key& key);
  // Discards a key, or the keys of all entries of a tenant. Pending writes, promotions and fetches of the
  // key, or of the tenant, insert nothing. Returns how many entries were dropped.
  std::int64_t forget(const Key& key);
  std::int64_t forget_tenant(const Key& tenant);

  // Allocates pages for a new entry, and evicts victims. Counts a rejection, changes nothing and returns null
  // if one of the tiers has too few pages available, or if `epoch` is not the current epoch. `row_width` must
  // divide the width of the tiers. `target` other than kDevice needs a host tier. With `is_offer`, the entry
  // is offered to the tiers below when it is inserted.
  PendingPtr begin_write(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                         std::int64_t epoch, WriteTo target = WriteTo::kDevice, const Key& tenant = {},
                         bool is_offer = false);
  // Allocates host pages for an entry that is copied from a tier below. With `may_evict`, evicts host entries
  // as `begin_write` does. Returns null, and counts no rejection, if the cache lacks a host tier, if too few
  // host pages are available, or free without `may_evict`, if `epoch` is not the current epoch, or if the key
  // is in the cache or is being demoted. `finish` inserts nothing, and counts no rejection, if the key is in
  // the cache by then.
  PendingPtr begin_fetch(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                         std::int64_t epoch, const Key& tenant, bool may_evict = true);
  // Allocates device pages for a copy of a host entry, and evicts victims. Returns null if `source` has left
  // the host tier, or if too few pages are available. With `is_contiguous`, the pages are one run of free
  // pages: nothing is evicted, and it returns null if no run is long enough.
  PendingPtr begin_promotion(const EntryPtr& source, bool is_contiguous = false);
  // Allocates host pages for early copies of the device entries that items of these numbers of pages would
  // evict. Returns null if no entry needs an early copy.
  PendingPtr begin_early_copies(const std::vector<std::int64_t>& num_pages);

  // The steps of a caller that chooses itself which entries leave a tier (orders.cpp, compaction.cpp). None
  // of them evicts an entry.

  // `begin_write` to the device tier, into one run of free pages. Returns null if no run is long enough. Only
  // rows that need more pages than the tier has, or that are not of the current epoch, count as rejected.
  PendingPtr begin_contiguous_write(const Key& key, std::int64_t num_rows, std::int64_t row_width,
                                    double cost, std::int64_t epoch, const Key& tenant = {},
                                    bool is_offer = false);
  // Allocates free host pages for an early copy of the device entry of a key. Returns null for a key that is
  // not in the device tier, if the entry has a host copy or a pending copy, or if too few host pages are
  // free.
  PendingPtr begin_copy_to_host(const Key& key);
  // Whether the entry of a key is in the device tier and has a host copy.
  bool has_host_copy(const Key& key) const;
  // Whether the entry of a key is in the device tier and has no lease.
  bool is_demotable(const Key& key) const;
  // Demotes an entry that is demotable and has a host copy. Returns false, and changes nothing, for other
  // keys.
  bool demote_to_copy(const Key& key);
  // Drops the rows of a key that are in the host tier or are being demoted to it: a host copy, whose entry
  // stays in the device tier, or the entry itself. Returns whether there were any.
  bool discard_from_host(const Key& key);
  // Begins to move all device entries to the lowest pages. Returns null if a device page is leased or
  // pending, or is read by a pending early copy. Until the compaction is finished, the entries that move are
  // pinned, and look-ups do not find them.
  PendingPtr begin_compaction();

  // Ends a pending write, pending early copies or a compaction: inserts the rows that were written before
  // `fence`. If the write failed, or its epoch is not the current epoch, frees the pages instead. A failed
  // write may have no fence. Returns whether an entry was inserted. A second call does nothing.
  //
  // After a failed compaction, the entries that were to move have lost their device pages: those with a host
  // copy are demoted to it, the other ones leave the cache.
  bool finish(const PendingPtr& pending, const std::optional<Fence>& fence, bool failed);
  // Inserts the rows of a pending write or promotion, and pins the new entry; null if it was not inserted.
  EntryPtr finish_and_pin(const PendingPtr& pending, const std::optional<Fence>& fence);

  // The write-back to the tiers below, which the caller makes: it takes offers. From now on an entry is
  // offered at its `hits`-th hit in its tier, 0: when it is inserted. -1: only at `is_offer` of a write.
  void set_write_back(std::int64_t hits) { offers_.set_hits(hits); }
  std::vector<Offer> take_offers();
  // Offers the entry of a key now, unless it was offered before or is in no tier.
  void offer(const Key& key);
  // The entry of a key was not copied to a tier below: a later hit may offer it again.
  void retract_offer(const Key& key);
  // Whether the caller should take releases or offers. One compare: look-ups ask.
  bool is_due() const { return releases_.size() >= num_due_releases_; }

  // Begins a new epoch in constant time. The pages of earlier entries are freed when they are needed.
  void advance();
  // Begins a new epoch, and frees the pages of all entries.
  void clear();
  // Drops every entry. Afterwards `is_closed` is true, and memory lives only as long as leases need it.
  void close();
  bool is_closed() const { return is_closed_; }

  bool contains(const Key& key) const { return index_->find(key) != nullptr; }
  std::int64_t size() const { return index_->size(); }
  std::int64_t epoch() const { return epoch_; }
  std::int64_t num_stale_indexes() const { return static_cast<std::int64_t>(stale_.size()); }
  const Index& index() const { return *index_; }
  Index& index() { return *index_; }
  Tier& device() { return *device_; }
  Tier* host() { return host_.get(); }
  Claims& claims() { return claims_; }
  // The keys of entries that left the cache and that are not back.
  EvictionRecord& evicted() { return evicted_; }
  const Counts& counts() const { return counts_; }

  // Describes every violated invariant; empty if the ledger is consistent.
  std::vector<std::string> find_violations() const;

 private:
  friend class LedgerInspection;  // tests/native plants faults

  // Releases that wait never change the result of a look-up, so this many are taken in one step.
  static constexpr std::size_t kReleasesPerBatch = 64;

  PendingPtr make_pending(const Key& key, std::int64_t num_rows, std::int64_t row_width, double cost,
                          const Key& tenant) const;
  void make_room(const Tier& tier, std::int64_t count, const Key& key);
  void allocate_device_pages(Pending& pending, bool has_host_copy);
  bool allocate_device_run(Pending& pending);
  Pages allocate_host_pages(std::int64_t count, FenceSet& fences);
  bool finish_write(Pending& pending, const std::optional<Fence>& fence, bool failed);
  bool is_wanted(const Pending& pending) const;
  void reject(const std::function<bool(const Pending&)>& is_meant);
  void offer(Entry& entry);
  void finish_early_copies(Pending& pending, const std::optional<Fence>& fence, bool failed);
  void finish_compaction(Pending& pending, const std::optional<Fence>& fence, bool failed);
  bool close_pending(const PendingPtr& pending);
  bool end_demotion(const DemotionPtr& demotion);
  std::vector<EntryPtr> choose_victims(Tier& tier, std::int64_t count);
  DemotionPtr demote(const EntryPtr& entry, FenceSet& fences);
  void reclaim(const Tier& tier, std::int64_t count);
  void reclaim_one();
  void reclaim_all();
  bool remove(const Key& key);
  void drop(const Key& key);
  void count_eviction(const Key& key);
  void free(const EntryPtr& entry);
  std::vector<const Tier*> tiers() const;

  MakePolicy make_policy_;
  std::shared_ptr<Tier> device_;
  std::shared_ptr<Tier> host_;
  std::unique_ptr<Index> index_;
  std::vector<std::unique_ptr<Index>> stale_;           // of earlier epochs
  std::unordered_map<const Entry*, EntryPtr> dropped_;  // leased, and in no index
  std::unordered_set<PendingPtr> pending_;
  // By key. A demotion is removed when new rows are inserted under its key: the new rows supersede it.
  std::unordered_map<Key, DemotionPtr, KeyHash> pending_demotions_;
  std::vector<Release> releases_;
  std::size_t num_due_releases_ = kReleasesPerBatch;  // 0 while offers wait
  Offers offers_;
  std::vector<Abandoned> abandoned_;
  Claims claims_;
  EvictionRecord evicted_;
  Counts counts_;
  std::int64_t epoch_ = 0;
  std::int64_t num_leases_ = 0;
  bool is_closed_ = false;
};

}  // namespace vitcache
