// Random histories of the ledger: its counts stay consistent, no page has two owners, and no fence of a
// reused page is lost.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache/external_policy.h"
#include "cache/ledger.h"
#include "check.h"
#include "ledger_cases.h"
#include "stream_clocks.h"

namespace vitcache {

class LedgerInspection {
 public:
  static bool is_being_demoted(const Ledger& ledger, const Key& key) {
    return being_demoted(ledger, key) != nullptr;
  }
  static EntryPtr being_demoted(const Ledger& ledger, const Key& key) {
    const auto found = ledger.pending_demotions_.find(key);
    return found == ledger.pending_demotions_.end() ? nullptr : found->second->entry;
  }
};

}  // namespace vitcache

namespace {

using vitcache::DemotionPtr;
using vitcache::EntryPtr;
using vitcache::ExternalPolicy;
using vitcache::Fence;
using vitcache::FenceSet;
using vitcache::kCpuStream;
using vitcache::Key;
using vitcache::Ledger;
using vitcache::LedgerInspection;
using vitcache::Pages;
using vitcache::PendingPtr;
using vitcache::Release;
using vitcache::Tier;
using vitcache::WriteTo;

constexpr std::uint64_t kNumKeys = 12;
constexpr std::uint64_t kNumTenants = 4;
constexpr std::int64_t kDevicePages = 16;
constexpr std::int64_t kHostPages = 12;
constexpr std::int64_t kFewRecorded = 5;
constexpr std::int64_t kManyRecorded = 1000;

struct Lease {
  EntryPtr entry;
  std::vector<std::int64_t> streams;  // that have read
};

struct Write {
  PendingPtr pending;
  std::optional<Lease> source;  // of a promotion
  Work copy;                    // of the demotions or early copies, once they are queued
  bool is_forgotten = false;    // so its rows must not be inserted
};

// What happened; every count must be positive in the end, else the history tested too little.
struct Seen {
  int reads = 0, inserted = 0, rejected = 0, demotions = 0, early_copies = 0, reused_with_fences = 0;
  int narrow = 0, discarded = 0, recorded = 0, in_host = 0, in_both = 0;
  int fetched = 0, late_fetches = 0, peeked = 0, offered = 0, forgotten = 0, forgotten_writes = 0;
  int runs = 0, ordered_copies = 0, ordered_demotions = 0, moves = 0, failed_moves = 0;
};

class History {
 public:
  // `has_orders`: the history has the steps of a caller that chooses itself which entries leave a tier.
  History(const std::string& policy, bool has_host, bool has_orders, std::uint64_t seed)
      : is_external_(policy == "external"),
        has_orders_(has_orders),
        random_(seed),
        num_recorded_(seed % 2 == 0 ? kManyRecorded : kFewRecorded),
        device_(make_tier("device", kDevicePages, 2)),
        host_(has_host ? make_tier("host", kHostPages, 2) : nullptr),
        ledger_(is_external_ ? [](std::int64_t) { return std::make_unique<ExternalPolicy>(); }
                             : policy_maker(policy),
                device_, host_, num_recorded_) {
    ledger_.set_write_back(static_cast<std::int64_t>(seed % 4) - 1);
  }

  void step() {
    const std::uint64_t action = random_() % 100;
    if (action < 2)
      discard();
    else if (action < 3)
      take_evicted();
    else if (has_orders_ && action < 6)
      order();
    else if (action < 9)
      use_lower_tiers();
    else if (action < 25)
      pin();
    else if (action < 29)
      pin_again();
    else if (action < 43)
      read();
    else if (action < 60)
      release();
    else if (action < 63)
      take_releases();
    else if (action < 66)
      finish_releases();
    else if (action < 78)
      begin_write();
    else if (action < 84)
      begin_promotion();
    else if (action < 87)
      begin_early_copies();
    else if (action < 98)
      finish();
    else if (action == 98)
      random_() % 2 == 0 ? report_corrupt() : order_victims();
    else if (random_() % 8 == 0)
      random_() % 2 == 0 ? ledger_.advance() : ledger_.clear();
    // So few leases that pages are often reused, and so few writes that many finish out of order.
    while (leases_.size() > 5) release();
    while (writes_.size() > 3) finish();
    if (is_external_ && random_() % 16 == 0) order_victims();
    note_evictions();
    check();
  }

  Seen end() {
    while (!writes_.empty()) finish();
    while (!leases_.empty()) release();
    finish_releases();
    take_releases();
    finish_releases();
    check();
    ledger_.clear();
    check();
    CHECK_EQUAL(ledger_.size(), 0);
    CHECK_EQUAL(device_->num_free(), kDevicePages);
    CHECK(host_ == nullptr || host_->num_free() == kHostPages);
    return seen_;
  }

 private:
  // Looks a key up with the right number of rows, with any number, or with a wrong number.
  void pin() {
    const std::uint64_t number = random_() % kNumKeys;
    const EntryPtr* const found = ledger_.index().find(key_of(number));
    std::int64_t num_rows = found == nullptr || random_() % 2 == 0 ? -1 : (*found)->num_rows;
    std::int64_t width = found == nullptr || random_() % 2 == 0 ? -1 : (*found)->row_width();
    if (random_() % 32 == 0) num_rows = 99;
    if (random_() % 32 == 0) width = 1 + static_cast<std::int64_t>(random_() % 2);
    EntryPtr entry = ledger_.pin(key_of(number), num_rows, width);
    ++num_look_ups_;
    CHECK(entry == nullptr || (entry->key == key_of(number) && num_rows != 99 && !entry->is_moving));
    CHECK(entry == nullptr || width == -1 || entry->row_width() == width);
    if (entry == nullptr) return;
    num_hit_bytes_ += entry->num_rows * entry->row_width() * 4;
    pages_of(*entry->tier).hold(entry->page_numbers());
    leases_.push_back({std::move(entry), {}});
  }

  void discard() {
    const Key key = key_of(random_() % kNumKeys);
    if (has_orders_ && random_() % 4 == 0) return discard_from_host(key);
    const bool was_here = ledger_.contains(key) || LedgerInspection::is_being_demoted(ledger_, key);
    forget_writes(
        [&key](const vitcache::Pending& pending) { return pending.is_fetch && pending.key == key; });
    CHECK(ledger_.discard(key) == was_here);
    CHECK(!ledger_.contains(key) && !LedgerInspection::is_being_demoted(ledger_, key));
    seen_.discarded += was_here;
  }

  // The steps of a caller with tiers below the host tier.
  void use_lower_tiers() {
    const std::uint64_t choice = random_() % 8;
    if (choice < 3)
      begin_fetch();
    else if (choice == 3)
      peek();
    else if (choice < 7)
      take_offers();
    else
      forget();
  }

  void begin_fetch() {
    const Key key = key_of(random_() % kNumKeys);
    const std::int64_t epoch = ledger_.epoch() - (random_() % 32 == 0);
    const auto num_rows = static_cast<std::int64_t>(random_() % 9);
    const std::int64_t width = random_() % 4 == 0 ? 1 : kWidth;
    const std::int64_t num_rejections = ledger_.counts().rejections;
    const bool is_here = ledger_.contains(key) || LedgerInspection::is_being_demoted(ledger_, key);
    const bool has_room = host_ != nullptr && host_->pages_for(num_rows, width) <= host_->num_available();
    PendingPtr pending = ledger_.begin_fetch(key, num_rows, width, 1.0, epoch, any_tenant());
    CHECK_EQUAL(ledger_.counts().rejections, num_rejections);
    CHECK((pending != nullptr) == (has_room && !is_here && epoch == ledger_.epoch()));
    if (pending == nullptr) return;
    CHECK(pending->is_fetch && pending->tier == host_ && pending->demotions.empty() && !pending->host_copy);
    add_write({std::move(pending), std::nullopt, {}});
  }

  // A lease that counts nothing.
  void peek() {
    const Key key = key_of(random_() % kNumKeys);
    const EntryPtr* const found = ledger_.index().find(key);
    const bool is_here = found != nullptr && !(*found)->is_moving;
    const std::int64_t num_rows = found == nullptr ? 1 : (*found)->num_rows + (random_() % 8 == 0);
    const std::int64_t width = found == nullptr ? 1 : (*found)->row_width();
    const std::int64_t hits = found == nullptr ? 0 : (*found)->hits;
    EntryPtr entry = ledger_.peek(key, num_rows, width);
    CHECK(ledger_.contains(key) == (found != nullptr));
    CHECK((entry != nullptr) == (is_here && num_rows == (*ledger_.index().find(key))->num_rows));
    if (entry == nullptr) return;
    CHECK(is_current(entry) && entry->hits == hits);
    pages_of(*entry->tier).hold(entry->page_numbers());
    leases_.push_back({std::move(entry), {}});
    ++seen_.peeked;
  }

  void take_offers() {
    for (const vitcache::Offer& offer : ledger_.take_offers()) {
      const EntryPtr* const found = ledger_.index().find(offer.key);
      if (found != nullptr && (*found)->tenant == offer.tenant && (*found)->num_rows == offer.num_rows &&
          (*found)->row_width() == offer.row_width)
        CHECK_EQUAL(offer.num_bytes, (*found)->num_bytes());
      ++seen_.offered;
      if (random_() % 4 != 0) continue;
      ledger_.retract_offer(offer.key);
      CHECK(found == nullptr || !(*found)->is_offered);
    }
    CHECK(ledger_.take_offers().empty());
  }

  void forget() {
    if (random_() % 8 != 0) {
      const Key key = key_of(random_() % kNumKeys);
      const bool was_here = ledger_.contains(key) || LedgerInspection::is_being_demoted(ledger_, key);
      forget_writes([&key](const vitcache::Pending& pending) { return pending.key == key; });
      CHECK_EQUAL(ledger_.forget(key), was_here ? 1 : 0);
      CHECK(!ledger_.contains(key) && !LedgerInspection::is_being_demoted(ledger_, key));
      seen_.forgotten += was_here;
      return;
    }
    const Key tenant = any_tenant();
    std::int64_t count = 0;
    for (std::uint64_t number = 0; number < kNumKeys; ++number) count += has_entry_of(key_of(number), tenant);
    forget_writes([&tenant](const vitcache::Pending& pending) { return pending.tenant == tenant; });
    CHECK_EQUAL(ledger_.forget_tenant(tenant), count);
    for (std::uint64_t number = 0; number < kNumKeys; ++number) CHECK(!has_entry_of(key_of(number), tenant));
    seen_.forgotten += static_cast<int>(count);
  }

  // Whether an entry of the tenant is under the key, or is being demoted.
  bool has_entry_of(const Key& key, const Key& tenant) {
    const EntryPtr* const found = ledger_.index().find(key);
    const EntryPtr demoted = LedgerInspection::being_demoted(ledger_, key);
    return (found != nullptr && (*found)->tenant == tenant) ||
           (demoted != nullptr && demoted->tenant == tenant);
  }

  // Marks the pending writes, promotions and fetches that must insert nothing from now on.
  template <typename IsMeant>
  void forget_writes(IsMeant is_meant) {
    for (Write& write : writes_) {
      const vitcache::Pending& pending = *write.pending;
      if (!pending.is_early && !pending.is_compaction && is_meant(pending)) write.is_forgotten = true;
    }
  }

  void order() {
    const std::uint64_t choice = random_() % 8;
    if (choice < 3)
      demote();
    else if (choice < 7)
      copy_to_host();
    else
      begin_compaction();
  }

  void discard_from_host(const Key& key) {
    const bool was_in_device = is_in_device(key), had_copy = ledger_.has_host_copy(key);
    const bool was_here = ledger_.contains(key) || LedgerInspection::is_being_demoted(ledger_, key);
    if (!was_in_device)
      forget_writes(
          [&key](const vitcache::Pending& pending) { return pending.is_fetch && pending.key == key; });
    CHECK(ledger_.discard_from_host(key) == (was_in_device ? had_copy : was_here));
    CHECK(is_in_device(key) == was_in_device && ledger_.contains(key) == was_in_device);
    CHECK(!ledger_.has_host_copy(key) && !LedgerInspection::is_being_demoted(ledger_, key));
  }

  void copy_to_host() {
    const Key key = key_of(random_() % kNumKeys);
    const std::int64_t num_evictions = ledger_.counts().evictions;
    PendingPtr pending = ledger_.begin_copy_to_host(key);
    CHECK_EQUAL(ledger_.counts().evictions, num_evictions);
    if (pending == nullptr) return;
    CHECK(is_in_device(key) && !ledger_.has_host_copy(key) && pending->demotions.size() == 1);
    ++seen_.ordered_copies;
    add_write({std::move(pending), std::nullopt, {}});
  }

  // Demotes an entry to its host copy, if it has one.
  void demote() {
    Key key = key_of(random_() % kNumKeys);
    for (int i = 0; i < 4 && !ledger_.has_host_copy(key); ++i) key = key_of(random_() % kNumKeys);
    const std::int64_t num_evictions = ledger_.counts().evictions;
    const bool is_possible =
        is_in_device(key) && ledger_.has_host_copy(key) && (*ledger_.index().find(key))->leases == 0;
    CHECK(ledger_.demote_to_copy(key) == is_possible);
    CHECK_EQUAL(ledger_.counts().evictions, num_evictions);
    CHECK(!is_possible || (ledger_.contains(key) && !is_in_device(key) && !ledger_.has_host_copy(key)));
    seen_.ordered_demotions += is_possible;
  }

  // Releases the leases first, in most cases: with a leased device page, no compaction begins.
  void begin_compaction() {
    if (random_() % 8 != 0) {
      while (!writes_.empty()) finish();
      while (!leases_.empty()) release();
      finish_releases();
      take_releases();
      finish_releases();
    }
    const bool has_early = std::any_of(writes_.begin(), writes_.end(),
                                       [](const Write& write) { return write.pending->is_early; });
    const bool is_possible = !has_early && device_->leased_pages == 0 && device_->pending_pages == 0;
    PendingPtr pending = ledger_.begin_compaction();
    CHECK((pending != nullptr) == is_possible);
    if (pending == nullptr) return;
    const Clock covered = clocks_.covered_by(pending->fences);
    check_unused(*device_, pending->pages);
    device_pages_.hand_out(pending->pages, covered);
    for (const vitcache::Move& move : pending->moves)
      device_pages_.hand_out(move.entry->page_numbers(), covered);  // other moves overwrite these pages
    writes_.push_back({std::move(pending), std::nullopt, {}});
  }

  // Moves the rows on a stream, perhaps not all of them, and perhaps without a fence behind the moves.
  void finish_compaction(const vitcache::PendingPtr& pending) {
    const bool failed = random_() % 4 == 0;
    const std::int64_t stream = any_stream();
    std::optional<Fence> fence;
    if (!failed || random_() % 2 == 0) {
      clocks_.wait(stream, pending->fences);
      const Work work = clocks_.work(stream);
      for (const vitcache::PageMove& move : pending->page_moves()) {
        for (std::int64_t page = 0; page < move.count; ++page)
          device_pages_.add_work({move.page + page, move.source_page + page}, work);
      }
      fence = clocks_.record(stream);
    }
    device_pages_.release(pending->pages);
    for (const vitcache::Move& move : pending->moves) device_pages_.release(move.entry->page_numbers());
    const auto pages_of_move = [](const vitcache::Move& move) { return *move.rows.source.pages; };
    std::vector<Pages> moved;
    std::transform(pending->moves.begin(), pending->moves.end(), std::back_inserter(moved), pages_of_move);
    CHECK(!ledger_.finish(pending, fence, failed));
    CHECK(!ledger_.finish(pending, fence, failed));
    for (std::size_t i = 0; i < moved.size(); ++i) {
      const EntryPtr& entry = pending->moves[i].entry;
      CHECK(!entry->is_moving && entry->leases == 0);
      CHECK(failed ? !is_current(entry) : entry->page_numbers() == moved[i] && entry->written == *fence);
    }
    (failed ? seen_.failed_moves : seen_.moves) += !moved.empty();
  }

  bool is_in_device(const Key& key) {
    const EntryPtr* const found = ledger_.index().find(key);
    return found != nullptr && (*found)->tier == device_.get();
  }

  // Keys that left since the last step; those that are back are forgotten.
  void note_evictions() {
    if (ledger_.epoch() != noted_epoch_) evicted_.clear();
    for (std::uint64_t number = 0; number < kNumKeys; ++number) {
      const Key key = key_of(number);
      const bool is_here = ledger_.contains(key) || LedgerInspection::is_being_demoted(ledger_, key);
      if (is_here)
        evicted_.erase(number);
      else if (was_here_[number] && ledger_.epoch() == noted_epoch_)
        evicted_.insert(number);
      was_here_[number] = is_here;
    }
    noted_epoch_ = ledger_.epoch();
  }

  void take_evicted() {
    const std::vector<Key> taken = ledger_.evicted().take();
    CHECK(ledger_.evicted().keys().empty());
    if (num_recorded_ == kManyRecorded) CHECK_EQUAL(taken.size(), evicted_.size());
    CHECK(static_cast<std::int64_t>(taken.size()) <= num_recorded_);
    for (const Key& key : taken) {
      bool is_expected = false;
      for (const std::uint64_t number : evicted_) is_expected = is_expected || key == key_of(number);
      CHECK(is_expected);
    }
    evicted_.clear();
    seen_.recorded += static_cast<int>(taken.size());
  }

  void pin_again() {
    if (!leases_.empty()) leases_.push_back(lease_again(leases_[pick(leases_)].entry));
  }

  void read() {
    if (leases_.empty()) return;
    read(leases_[pick(leases_)], any_stream());
  }

  void read(Lease& lease, std::int64_t stream) {
    FenceSet written;
    written.add(lease.entry->written);
    clocks_.wait(stream, written);
    pages_of(*lease.entry->tier).add_work(lease.entry->page_numbers(), clocks_.work(stream));
    if (std::find(lease.streams.begin(), lease.streams.end(), stream) == lease.streams.end())
      lease.streams.push_back(stream);
    ++seen_.reads;
  }

  void release() {
    if (!leases_.empty()) release(take(leases_));
  }

  void release(Lease lease) {
    if (lease.streams.empty()) let_go(lease.entry);
    if (lease.streams.empty() && random_() % 2 == 0)
      ledger_.unpin(*lease.entry);
    else
      ledger_.release(std::move(lease.entry), std::move(lease.streams));
  }

  // Takes the released leases and records one fence per stream; `finish_releases` comes later.
  void take_releases() {
    if (!batch_.empty()) return;
    batch_ = std::exchange(ledger_.releases(), {});
    for (std::int64_t stream = kCpuStream; stream < kNumStreams; ++stream)
      batch_fences_[static_cast<std::size_t>(stream + 1)] = clocks_.record(stream);
  }

  void finish_releases() {
    for (const Release& release : batch_) {
      for (const std::int64_t stream : release.streams)
        release.entry->record_read(batch_fences_[static_cast<std::size_t>(stream + 1)]);
      let_go(release.entry);
      ledger_.unpin(*release.entry);
    }
    batch_.clear();
  }

  void begin_write() {
    const std::int64_t epoch = ledger_.epoch() - (random_() % 32 == 0);
    const auto num_rows = static_cast<std::int64_t>(random_() % 9);
    const auto cost = static_cast<double>(random_() % 50);
    const std::int64_t width = random_() % 4 == 0 ? 1 : kWidth;
    const std::uint64_t choice = host_ == nullptr ? 9 : random_() % 10;
    const WriteTo target = choice == 0 ? WriteTo::kHost : choice < 3 ? WriteTo::kBoth : WriteTo::kDevice;
    const Key key = key_of(random_() % kNumKeys);
    if (has_orders_ && target == WriteTo::kDevice && random_() % 4 == 0)
      return begin_run(key, num_rows, width, epoch);
    PendingPtr pending =
        ledger_.begin_write(key, num_rows, width, cost, epoch, target, any_tenant(), random_() % 8 == 0);
    if (pending == nullptr) return;
    CHECK_EQUAL(epoch, ledger_.epoch());
    CHECK((pending->tier == host_) == (target == WriteTo::kHost));
    CHECK(pending->host_copy.has_value() == (target == WriteTo::kBoth));
    CHECK(target != WriteTo::kHost || pending->demotions.empty());
    add_write({std::move(pending), std::nullopt, {}});
  }

  // Begins a write into one run of free pages, which evicts nothing.
  void begin_run(const Key& key, std::int64_t num_rows, std::int64_t width, std::int64_t epoch) {
    const std::int64_t num_evictions = ledger_.counts().evictions, size = ledger_.size();
    PendingPtr pending =
        ledger_.begin_contiguous_write(key, num_rows, width, 1.0, epoch, any_tenant(), random_() % 8 == 0);
    CHECK(ledger_.counts().evictions == num_evictions && ledger_.size() == size);
    if (pending == nullptr) return;
    CHECK_EQUAL(epoch, ledger_.epoch());
    check_run(*pending);
    add_write({std::move(pending), std::nullopt, {}});
  }

  void check_run(const vitcache::Pending& pending) {
    const auto count = static_cast<std::int64_t>(pending.pages.size());
    CHECK_EQUAL(count, device_->pages_for(pending.num_rows, pending.row_width));
    CHECK(pending.leftover_pages.empty() && pending.demotions.empty());
    CHECK(std::is_sorted(pending.pages.begin(), pending.pages.end()));
    CHECK_EQUAL(pending.pages.back() - pending.pages.front(), count - 1);
    ++seen_.runs;
  }

  // Promotes a leased entry, which may have left the host tier.
  void begin_promotion() {
    if (leases_.empty()) return;
    const EntryPtr source = leases_[pick(leases_)].entry;
    Lease lease = lease_again(source);
    const bool is_contiguous = has_orders_ && random_() % 3 == 0;
    const std::int64_t num_evictions = ledger_.counts().evictions;
    PendingPtr pending = ledger_.begin_promotion(source, is_contiguous);
    CHECK(!is_contiguous || ledger_.counts().evictions == num_evictions);
    if (pending == nullptr) return release(std::move(lease));
    CHECK(source->tier == host_.get() && pending->tenant == source->tenant);
    if (is_contiguous) check_run(*pending);
    add_write({std::move(pending), std::move(lease), {}});
  }

  void begin_early_copies() {
    PendingPtr pending = ledger_.begin_early_copies(
        {static_cast<std::int64_t>(random_() % 9), static_cast<std::int64_t>(random_() % 9)});
    if (pending != nullptr) add_write({std::move(pending), std::nullopt, {}});
  }

  // Holds the pages of a pending write, and queues its copies to the host tier.
  void add_write(Write write) {
    vitcache::Pending& pending = *write.pending;
    const Clock covered = clocks_.covered_by(pending.fences);
    seen_.reused_with_fences += !pending.fences.empty();
    if (!pending.is_early) {
      check_unused(*pending.tier, pending.pages);
      check_unused(*pending.tier, pending.leftover_pages);
      pages_of(*pending.tier).hand_out(pending.pages, covered);
      pages_of(*pending.tier).hand_out(pending.leftover_pages, covered);
    }
    if (pending.host_copy) {
      check_unused(*host_, pending.host_copy->pages);
      host_pages_.hand_out(pending.host_copy->pages, clocks_.covered_by(pending.host_copy->fences));
    }
    for (const DemotionPtr& demotion : pending.demotions) {
      check_unused(*host_, demotion->pages);
      host_pages_.hand_out(demotion->pages, covered);
      FenceSet written;
      written.add(demotion->entry->written);
      CHECK(covers(covered, clocks_.covered_by(written)));
    }
    if (!pending.demotions.empty() && random_() % 8 != 0) queue_copies(write);
    writes_.push_back(std::move(write));
  }

  void queue_copies(Write& write) {
    vitcache::Pending& pending = *write.pending;
    clocks_.wait(kCopyStream, pending.fences);
    write.copy = clocks_.work(kCopyStream);
    for (const DemotionPtr& demotion : pending.demotions) {
      host_pages_.add_work(demotion->pages, write.copy);
      // If the entry is evicted during an early copy, the copy is discarded: nothing waits for its read.
      if (!pending.is_early) device_pages_.add_work(demotion->entry->page_numbers(), write.copy);
    }
    pending.set_copied(clocks_.record(kCopyStream));
    (pending.is_early ? seen_.early_copies : seen_.demotions) += 1;
  }

  void finish() {
    if (writes_.empty()) return;
    Write write = take(writes_);
    vitcache::Pending& pending = *write.pending;
    if (pending.is_compaction) return finish_compaction(write.pending);
    const bool is_copied = pending.demotions.empty() || pending.copied;
    std::optional<Fence> fence = pending.copied;
    bool failed = !is_copied || random_() % 8 == 0;
    if (!pending.is_early) {
      fence.reset();
      // Without a fence, the writer did no work.
      if (is_copied && random_() % 8 != 0) fence = write_rows(write, failed);
      if (fence && pending.host_copy && (!failed || random_() % 2 == 0)) write_through(pending, *fence);
    }
    if (pending.is_early && is_copied) {
      for (const DemotionPtr& demotion : pending.demotions)
        if (is_current(demotion->entry)) device_pages_.add_work(demotion->entry->page_numbers(), write.copy);
    }
    if (!pending.is_early) {
      pages_of(*pending.tier).release(pending.pages);
      pages_of(*pending.tier).release(pending.leftover_pages);
    }
    if (pending.host_copy) host_pages_.release(pending.host_copy->pages);
    for (const DemotionPtr& demotion : pending.demotions) host_pages_.release(demotion->pages);
    CHECK_EQUAL(pending.is_rejected, write.is_forgotten);
    if (!pending.is_early && random_() % 4 == 0) return finish_and_pin(write, fence, failed);
    const bool was_here = ledger_.contains(pending.key);
    const bool inserted = ledger_.finish(write.pending, fence, failed);
    CHECK(!inserted || !write.is_forgotten);
    seen_.forgotten_writes += write.is_forgotten;
    if (pending.is_fetch) {
      CHECK(inserted ==
            (fence && !failed && !was_here && !write.is_forgotten && pending.epoch == ledger_.epoch()));
      seen_.fetched += inserted;
      seen_.late_fetches += was_here;
    }
    CHECK(!inserted || (fence && !failed && pending.epoch == ledger_.epoch() && !pending.is_early));
    CHECK(!ledger_.finish(write.pending, fence, failed));  // a second call does nothing
    (inserted ? seen_.inserted : seen_.rejected) += 1;
    if (inserted) check_inserted(pending, *fence);
    if (write.source) release(std::move(*write.source));
  }

  void check_inserted(const vitcache::Pending& pending, const Fence& fence) {
    const EntryPtr entry = *ledger_.index().find(pending.key);
    CHECK(entry->page_numbers() == pending.pages && entry->written == fence);
    CHECK(entry->row_width() == pending.row_width && entry->num_rows == pending.num_rows);
    CHECK(entry->tier == pending.tier.get() && entry->tenant == pending.tenant);
    CHECK(!pending.is_fetch || entry->is_offered);
    const EntryPtr* const copy = ledger_.index().find_host_copy(pending.key);
    CHECK((copy != nullptr) == (pending.host_copy.has_value() || pending.source != nullptr));
    if (pending.host_copy)
      CHECK((*copy)->page_numbers() == pending.host_copy->pages && (*copy)->row_width() == pending.row_width);
    seen_.narrow += entry->is_narrow;
    seen_.in_host += entry->tier == host_.get();
    seen_.in_both += pending.host_copy.has_value();
  }

  // Ends a write with a lease on the new entry, which counts no hit.
  void finish_and_pin(Write& write, const std::optional<Fence>& fence, bool failed) {
    EntryPtr entry;
    if (failed)
      ledger_.finish(write.pending, fence, true);
    else
      entry = ledger_.finish_and_pin(write.pending, fence);
    CHECK(ledger_.finish_and_pin(write.pending, fence) == nullptr);
    (entry != nullptr ? seen_.inserted : seen_.rejected) += 1;
    CHECK(entry == nullptr || !write.is_forgotten);
    if (entry != nullptr) {
      check_inserted(*write.pending, *fence);
      CHECK(is_current(entry) && entry->leases == 1 && entry->hits == 0);
      pages_of(*entry->tier).hold(entry->page_numbers());
      leases_.push_back({std::move(entry), {}});
    }
    if (write.source) release(std::move(*write.source));
  }

  // Queues the host copy of rows that were written before `written`.
  void write_through(vitcache::Pending& pending, const Fence& written) {
    FenceSet fences = pending.host_copy->fences;
    fences.add(written);
    clocks_.wait(kCopyStream, fences);
    const Work copy = clocks_.work(kCopyStream);
    device_pages_.add_work(pending.pages, copy);
    host_pages_.add_work(pending.host_copy->pages, copy);
    pending.host_copy->copied = clocks_.record(kCopyStream);
  }

  // Queues the write, and the read of a promotion's source, on a stream or on the CPU.
  Fence write_rows(Write& write, bool failed) {
    const std::int64_t stream = any_stream();
    clocks_.wait(stream, write.pending->fences);
    if (write.source) read(*write.source, stream);
    if (!failed || random_() % 2 == 0)
      pages_of(*write.pending->tier).add_work(write.pending->pages, clocks_.work(stream));
    return clocks_.record(stream);
  }

  void report_corrupt() {
    if (leases_.empty()) return;
    Lease lease = take(leases_);
    ledger_.report_corrupt(lease.entry);
    num_hit_bytes_ -= lease.entry->num_rows * lease.entry->row_width() * 4;
    CHECK(!is_current(lease.entry));
    const EntryPtr* const copy = ledger_.index().find_host_copy(lease.entry->key);
    CHECK(copy == nullptr || *copy != lease.entry);
    release(std::move(lease));
  }

  void order_victims() {
    if (!is_external_) return;
    Tier& tier = host_ != nullptr && random_() % 2 == 0 ? *host_ : *device_;
    auto& policy = dynamic_cast<ExternalPolicy&>(ledger_.index().policy_of(tier));
    policy.take_events();
    std::vector<Key> keys = ledger_.index().keys_of_policy(tier);
    std::shuffle(keys.begin(), keys.end(), random_);
    keys.resize(random_() % (keys.size() + 1));
    std::vector<std::pair<Key, bool>> order;
    for (const Key& key : keys) order.emplace_back(key, random_() % 4 != 0);
    policy.set_order(order);
  }

  void check() {
    const std::vector<std::string> violations = ledger_.find_violations();
    for (const std::string& violation : violations) std::cerr << violation << "\n";
    CHECK(violations.empty());
    const vitcache::Counts& counts = ledger_.counts();
    if (writes_.empty()) CHECK_EQUAL(ledger_.size(), counts.insertions - counts.evictions);
    const std::int64_t hits = device_->hits.hits + (host_ == nullptr ? 0 : host_->hits.hits);
    CHECK_EQUAL(hits + counts.misses, num_look_ups_);
    CHECK_EQUAL(device_->hits.bytes + (host_ == nullptr ? 0 : host_->hits.bytes), num_hit_bytes_);
  }

  // Checks that pages which were just handed out belong to no entry of the index.
  void check_unused(const Tier& tier, const Pages& pages) {
    ledger_.index().visit_all([&](const EntryPtr& entry) {
      if (entry->tier != &tier) return;
      for (const std::int64_t page : entry->page_numbers())
        CHECK(std::find(pages.begin(), pages.end(), page) == pages.end());
    });
  }

  bool is_current(const EntryPtr& entry) {
    const EntryPtr* const current = ledger_.index().find(entry->key);
    return current != nullptr && *current == entry;
  }

  Lease lease_again(const EntryPtr& entry) {
    ledger_.pin_entry(*entry);
    pages_of(*entry->tier).hold(entry->page_numbers());
    return {entry, {}};
  }
  void let_go(const EntryPtr& entry) { pages_of(*entry->tier).release(entry->page_numbers()); }
  ShadowPages& pages_of(const Tier& tier) { return &tier == device_.get() ? device_pages_ : host_pages_; }
  Key any_tenant() { return key_of(100 + random_() % kNumTenants); }
  std::int64_t any_stream() { return static_cast<std::int64_t>(random_() % kNumStreams) - 1; }
  template <typename Item>
  std::size_t pick(const std::vector<Item>& items) {
    return random_() % items.size();
  }
  template <typename Item>
  Item take(std::vector<Item>& items) {
    const auto place = items.begin() + static_cast<std::ptrdiff_t>(pick(items));
    Item item = std::move(*place);
    items.erase(place);
    return item;
  }

  bool is_external_;
  bool has_orders_;
  std::mt19937_64 random_;
  std::int64_t num_recorded_;
  std::shared_ptr<Tier> device_;
  std::shared_ptr<Tier> host_;
  Ledger ledger_;
  StreamClocks clocks_;
  ShadowPages device_pages_{kDevicePages};
  ShadowPages host_pages_{kHostPages};
  std::vector<Lease> leases_;
  std::vector<Write> writes_;
  std::vector<Release> batch_;
  std::array<Fence, kNumStreams + 1> batch_fences_;
  std::int64_t num_look_ups_ = 0;
  std::int64_t num_hit_bytes_ = 0;
  std::array<bool, kNumKeys> was_here_{};  // before the last step
  std::set<std::uint64_t> evicted_;        // the numbers of the keys that left and are not back
  std::int64_t noted_epoch_ = 0;
  Seen seen_;
};

}  // namespace

int main() {
  std::uint64_t seed = 0;
  for (const char* policy : {"lru", "s3fifo", "cost", "external"}) {
    for (const bool has_host : {false, true}) {
      for (int run = 0; run < 4; ++run) {
        const bool has_orders = run >= 2;
        History history(policy, has_host, has_orders, ++seed);
        for (int step = 0; step < 10'000; ++step) history.step();
        const Seen seen = history.end();
        CHECK(seen.reads > 500 && seen.inserted > 500 && seen.rejected > 150);
        CHECK(seen.reused_with_fences > 500);
        CHECK(!has_host || (seen.demotions > 5 && seen.early_copies > 5));
        CHECK(seen.narrow > 100 && seen.discarded > 25 && seen.recorded > 50);
        CHECK(!has_host || (seen.in_host > 25 && seen.in_both > 25));
        CHECK(seen.peeked > 4 && seen.offered > 25 && seen.forgotten > 5 && seen.forgotten_writes > 0);
        CHECK(!has_host || (seen.fetched > 15));
        CHECK(!has_orders || (seen.runs > 50 && seen.moves > 10 && seen.failed_moves > 1));
        CHECK(!has_orders || !has_host || (seen.ordered_copies > 5 && seen.ordered_demotions > 3));
      }
    }
  }
}
