// Random histories of the ledger: the books stay consistent, no page has two owners, and no fence of a reused
// page is lost.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cache/external_policy.h"
#include "cache/ledger.h"
#include "check.h"
#include "ledger_cases.h"
#include "stream_clocks.h"

namespace {

using vitcache::DemotionPtr;
using vitcache::EntryPtr;
using vitcache::ExternalPolicy;
using vitcache::Fence;
using vitcache::FenceSet;
using vitcache::kCpuStream;
using vitcache::Key;
using vitcache::Ledger;
using vitcache::Pages;
using vitcache::PendingPtr;
using vitcache::Release;
using vitcache::Tier;

constexpr std::uint64_t kNumKeys = 12;
constexpr std::int64_t kDevicePages = 16;
constexpr std::int64_t kHostPages = 12;

struct Lease {
  EntryPtr entry;
  std::vector<std::int64_t> streams;  // that have read
};

struct Write {
  PendingPtr pending;
  std::optional<Lease> source;  // of a promotion
  Work copy;                    // of the demotions or early copies, once they are queued
};

// What happened; every count must be positive in the end, else the history tested too little.
struct Seen {
  int reads = 0, inserted = 0, rejected = 0, demotions = 0, early_copies = 0, reused_with_fences = 0;
};

class History {
 public:
  History(const std::string& policy, bool has_host, std::uint64_t seed)
      : is_external_(policy == "external"),
        random_(seed),
        device_(make_tier("device", kDevicePages, 2)),
        host_(has_host ? make_tier("host", kHostPages, 2) : nullptr),
        ledger_(is_external_ ? [](std::int64_t) { return std::make_unique<ExternalPolicy>(); }
                             : policy_maker(policy),
                device_, host_) {}

  void step() {
    const std::uint64_t action = random_() % 100;
    if (action < 25)
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
    if (random_() % 32 == 0) num_rows = 99;
    EntryPtr entry = ledger_.pin(key_of(number), num_rows);
    ++num_look_ups_;
    CHECK(entry == nullptr || (entry->key == key_of(number) && num_rows != 99));
    if (entry == nullptr) return;
    pages_of(*entry->tier).hold(entry->page_numbers());
    leases_.push_back({std::move(entry), {}});
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
    PendingPtr pending = ledger_.begin_write(key_of(random_() % kNumKeys), num_rows, cost, epoch);
    if (pending == nullptr) return;
    CHECK_EQUAL(epoch, ledger_.epoch());
    add_write({std::move(pending), std::nullopt, {}});
  }

  // Promotes a leased entry, which may have left the host tier.
  void begin_promotion() {
    if (leases_.empty()) return;
    const EntryPtr source = leases_[pick(leases_)].entry;
    Lease lease = lease_again(source);
    PendingPtr pending = ledger_.begin_promotion(source);
    if (pending == nullptr) return release(std::move(lease));
    CHECK(source->tier == host_.get());
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
    check_unused(*device_, pending.pages);
    check_unused(*device_, pending.leftover_pages);
    device_pages_.hand_out(pending.pages, covered);
    device_pages_.hand_out(pending.leftover_pages, covered);
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
    const bool is_copied = pending.demotions.empty() || pending.copied;
    std::optional<Fence> fence = pending.copied;
    bool failed = !is_copied || random_() % 8 == 0;
    if (!pending.is_early) {
      fence.reset();
      // Without a fence, the writer did no work.
      if (is_copied && random_() % 8 != 0) fence = write_rows(write, failed);
    }
    if (pending.is_early && is_copied) {
      for (const DemotionPtr& demotion : pending.demotions)
        if (is_current(demotion->entry)) device_pages_.add_work(demotion->entry->page_numbers(), write.copy);
    }
    device_pages_.release(pending.pages);
    device_pages_.release(pending.leftover_pages);
    for (const DemotionPtr& demotion : pending.demotions) host_pages_.release(demotion->pages);
    const bool inserted = ledger_.finish(write.pending, fence, failed);
    CHECK(!inserted || (fence && !failed && pending.epoch == ledger_.epoch() && !pending.is_early));
    CHECK(!ledger_.finish(write.pending, fence, failed));  // a second call does nothing
    (inserted ? seen_.inserted : seen_.rejected) += 1;
    if (inserted) {
      const EntryPtr entry = *ledger_.index().find(pending.key);
      CHECK(entry->page_numbers() == pending.pages && entry->written == *fence);
    }
    if (write.source) release(std::move(*write.source));
  }

  // Queues the write, and the read of a promotion's source, on a stream or on the CPU.
  Fence write_rows(Write& write, bool failed) {
    const std::int64_t stream = any_stream();
    clocks_.wait(stream, write.pending->fences);
    if (write.source) read(*write.source, stream);
    if (!failed || random_() % 2 == 0) device_pages_.add_work(write.pending->pages, clocks_.work(stream));
    return clocks_.record(stream);
  }

  void report_corrupt() {
    if (leases_.empty()) return;
    Lease lease = take(leases_);
    ledger_.report_corrupt(lease.entry);
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
    ledger_.pin_again(*entry);
    pages_of(*entry->tier).hold(entry->page_numbers());
    return {entry, {}};
  }
  void let_go(const EntryPtr& entry) { pages_of(*entry->tier).release(entry->page_numbers()); }
  ShadowPages& pages_of(const Tier& tier) { return &tier == device_.get() ? device_pages_ : host_pages_; }
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
  std::mt19937_64 random_;
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
  Seen seen_;
};

}  // namespace

int main() {
  std::uint64_t seed = 0;
  for (const char* policy : {"lru", "s3fifo", "cost", "external"}) {
    for (const bool has_host : {false, true}) {
      for (int run = 0; run < 4; ++run) {
        History history(policy, has_host, ++seed);
        for (int step = 0; step < 10'000; ++step) history.step();
        const Seen seen = history.end();
        CHECK(seen.reads > 500 && seen.inserted > 500 && seen.rejected > 150);
        CHECK(seen.reused_with_fences > 500);
        CHECK(!has_host || (seen.demotions > 25 && seen.early_copies > 25));
      }
    }
  }
}
