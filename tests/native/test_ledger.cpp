// The ledger finds planted faults in its books, keeps claims, and closes while parts of it are in use.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache/claims.h"
#include "cache/ledger.h"
#include "check.h"
#include "ledger_cases.h"

namespace vitcache {

// Plants faults in the private books.
class LedgerInspection {
 public:
  static void add_leases(Ledger& ledger, std::int64_t count) { ledger.num_leases_ += count; }
  static void add_evictions(Ledger& ledger, std::int64_t count) { ledger.counts_.evictions += count; }
  static void add_dropped(Ledger& ledger, const EntryPtr& entry) {
    ledger.dropped_.emplace(entry.get(), entry);
  }
  static void add_demotion(Ledger& ledger, const DemotionPtr& demotion) {
    ledger.pending_demotions_[demotion->entry->key] = demotion;
  }
  static void add_due(Ledger& ledger) { ledger.num_due_releases_ = 0; }
  static EntryPtr take_from_table(Index& index, const Key& key) { return index.entries_.take(key); }
};

}  // namespace vitcache

namespace {

using vitcache::Claims;
using vitcache::Demotion;
using vitcache::Entry;
using vitcache::EntryPtr;
using vitcache::EvictionRecord;
using vitcache::Fence;
using vitcache::FenceSet;
using vitcache::Key;
using vitcache::Ledger;
using vitcache::LedgerInspection;
using vitcache::Pages;
using vitcache::PendingPtr;
using vitcache::Tier;

EntryPtr entry_of(Ledger& ledger, std::uint64_t number) { return *ledger.index().find(key_of(number)); }

// Plants a fault in a ledger whose one entry has the device pages 0 and 1. `find_violations` must report it.
void check_fault(const std::function<void(Ledger&)>& plant, const std::string& message) {
  Ledger ledger(policy_maker("lru"), make_tier("device", 4, 1), make_tier("host", 4, 1), 4);
  CHECK(put(ledger, 0, 2));
  CHECK(ledger.find_violations().empty());
  plant(ledger);
  const std::vector<std::string> found = ledger.find_violations();
  if (std::find(found.begin(), found.end(), message) != found.end()) return;
  std::cerr << "not found: " << message << "\n";
  for (const std::string& violation : found) std::cerr << "found: " << violation << "\n";
  CHECK(false);
}

void planted_faults_of_counts_are_found() {
  check_fault([](Ledger& ledger) { ++entry_of(ledger, 0)->leases; }, "leases: expected 1, recorded 0");
  check_fault([](Ledger& ledger) { LedgerInspection::add_leases(ledger, 1); },
              "leases: expected 0, recorded 1");
  check_fault([](Ledger& ledger) { ++ledger.device().leased_pages; },
              "leased device pages: expected 0, recorded 1");
  check_fault([](Ledger& ledger) { ++entry_of(ledger, 0)->leases; },
              "leased device pages: expected 2, recorded 0");
  check_fault([](Ledger& ledger) { ++ledger.device().pending_pages; },
              "pending device pages: expected 0, recorded 1");
  check_fault([](Ledger& ledger) { ++ledger.host()->pending_pages; },
              "pending host pages: expected 0, recorded 1");
  check_fault([](Ledger& ledger) { LedgerInspection::add_evictions(ledger, 1); },
              "entries: expected 1, recorded 0");
  check_fault([](Ledger& ledger) { ledger.evicted().add(key_of(0)); },
              "entries whose key is recorded as evicted: expected 0, recorded 1");
}

void planted_faults_of_pages_are_found() {
  FenceSet fences;
  check_fault([&](Ledger& ledger) { ledger.device().allocate(1, fences); },
              "device pages [2] do not have exactly one owner");
  check_fault([&](Ledger& ledger) { ledger.host()->allocate(2, fences); },
              "host pages [0, 1] do not have exactly one owner");
  check_fault([&](Ledger& ledger) { ledger.device().free({entry_of(ledger, 0)->page_numbers()[0]}, fences); },
              "device pages [0] do not have exactly one owner");
  check_fault([](Ledger& ledger) { entry_of(ledger, 0)->num_rows = 1; },
              "pages of an entry: expected 1, recorded 2");
}

void planted_faults_of_entries_are_found() {
  EntryPtr lost;  // the policy has its node
  check_fault([&](Ledger& ledger) { lost = LedgerInspection::take_from_table(ledger.index(), key_of(0)); },
              "keys in only one of index and policy of the device tier: expected 0, recorded 1");
  check_fault(
      [](Ledger& ledger) {
        const EntryPtr entry = entry_of(ledger, 0);
        ledger.index().remove(entry->key);
        LedgerInspection::add_evictions(ledger, 1);
        LedgerInspection::add_dropped(ledger, entry);
      },
      "dropped entries that wait for a release: expected 0, recorded 1");
  check_fault(
      [](Ledger& ledger) {
        auto demotion = std::make_shared<Demotion>();
        demotion->entry = entry_of(ledger, 0);
        LedgerInspection::add_demotion(ledger, demotion);
      },
      "demotions without a pending write: expected 0, recorded 1");
  check_fault(
      [](Ledger& ledger) {
        FenceSet fences;
        const std::shared_ptr<Tier> host(std::shared_ptr<void>(), ledger.host());
        ledger.index().add_host_copy(std::make_shared<Entry>(
            key_of(1), 1.0, host, host->describe(host->allocate(1, fences), 1, kWidth), make_fence()));
      },
      "host copies without a device entry: expected 0, recorded 1");
  check_fault(
      [](Ledger& ledger) {
        const PendingPtr pending = ledger.begin_copy_to_host(key_of(0));
        pending->set_copied(make_fence());
        ledger.finish(pending, make_fence(), false);
        entry_of(ledger, 0)->tenant = key_of(8);
      },
      "host copies of another tenant than their entry: expected 0, recorded 1");
  check_fault([](Ledger& ledger) { LedgerInspection::add_due(ledger); },
              "calls that are due because of offers: expected 0, recorded 1");
}

void entry_has_one_early_copy_at_a_time() {
  Ledger ledger(policy_maker("lru"), make_tier("device", 2, 1), make_tier("host", 4, 1));
  CHECK(put(ledger, 0, 1) && put(ledger, 1, 1));
  const PendingPtr first = ledger.begin_early_copies({1});
  CHECK(first != nullptr && ledger.begin_early_copies({1}) == nullptr);
  const PendingPtr second = ledger.begin_early_copies({2});
  CHECK(second != nullptr && second->demotions.size() == 1);
  CHECK(second->demotions[0]->entry == entry_of(ledger, 1));
  ledger.finish(first, make_fence(), true);
  CHECK(ledger.begin_early_copies({1}) != nullptr);  // the failed copy is made again
}

void record_keeps_the_last_keys_once() {
  EvictionRecord record(2);
  for (const std::uint64_t number : {1U, 2U, 1U, 3U, 3U}) record.add(key_of(number));
  CHECK((record.take() == std::vector<Key>{key_of(1), key_of(3)}));
  CHECK(record.take().empty());
  record.add(key_of(1));
  record.remove(key_of(2));
  record.remove(key_of(1));
  record.add(key_of(4));
  CHECK((record.take() == std::vector<Key>{key_of(4)}));
  EvictionRecord disabled(0);
  disabled.add(key_of(1));
  CHECK(!disabled.is_enabled() && disabled.take().empty());
}

// A page has two rows of two elements.
void narrow_rows_are_packed_and_looked_up_by_their_width() {
  Ledger ledger(policy_maker("lru"), make_tier("device", 4, 2), nullptr);
  CHECK(put(ledger, 0, 5, 1));
  const EntryPtr entry = entry_of(ledger, 0);
  CHECK(entry->is_narrow && entry->row_width() == 1 && entry->num_pages == 2);
  CHECK_EQUAL(entry->num_bytes(), 5 * 4);
  CHECK_EQUAL(entry->rows.source.row_stride, 4);
  const std::int64_t page = entry->page_numbers()[1];
  CHECK_EQUAL(entry->rows.source.row_address(4), 4096 + page * 16);
  ledger.unpin(*ledger.pin(key_of(0), 5, 1));
  CHECK_EQUAL(ledger.device().hits.bytes, 5 * 4);
  CHECK(ledger.pin(key_of(0), 5, 2) == nullptr && !ledger.contains(key_of(0)));
  CHECK_EQUAL(ledger.device().num_free(), 4);
  CHECK(ledger.find_violations().empty());
}

void claims_have_one_owner_per_epoch_and_key() {
  Claims claims;
  const auto first = std::make_shared<Claims::Token>(), second = std::make_shared<Claims::Token>();
  CHECK(claims.claim(0, key_of(1), first) == first);
  CHECK(claims.claim(0, key_of(1), second) == first);
  CHECK(claims.claim(0, key_of(2), second) == second);
  CHECK(claims.claim(1, key_of(1), second) == second);  // of another epoch
  CHECK_EQUAL(claims.size(), 3);
  claims.release(0, key_of(1), second);  // not the owner
  claims.release(2, key_of(1), first);   // no claim
  CHECK_EQUAL(claims.size(), 3);
  CHECK(claims.claim(0, key_of(1), second) == first);
  claims.release(0, key_of(1), first);
  claims.release(0, key_of(1), first);
  CHECK_EQUAL(claims.size(), 2);
  CHECK(claims.claim(0, key_of(1), second) == second);
  second->is_released = true;  // before the ledger knows: another caller owns the key at once
  CHECK_EQUAL(claims.size(), 0);
  CHECK(claims.claim(0, key_of(1), first) == first);
  CHECK_EQUAL(claims.size(), 1);
}

void close_keeps_memory_only_while_leases_and_writes_need_it() {
  auto memory = std::make_shared<int>();
  Ledger ledger(policy_maker("lru"), make_tier("device", 8, 1, memory), make_tier("host", 4, 1));
  for (std::uint64_t number = 0; number < 5; ++number) CHECK(put(ledger, number, 1));
  EntryPtr leased = ledger.pin(key_of(0), -1);
  EntryPtr replaced = ledger.pin(key_of(1), -1);
  CHECK(put(ledger, 1, 1));  // the replaced entry waits for its release
  EntryPtr queued = ledger.pin(key_of(2), -1);
  ledger.release(std::move(queued), {kStream});
  EntryPtr late = ledger.pin(key_of(3), -1);
  PendingPtr pending = ledger.begin_write(key_of(9), 2, kWidth, 1.0, ledger.epoch());
  PendingPtr early = ledger.begin_early_copies({2});
  CHECK(pending != nullptr && early != nullptr && leased != nullptr && replaced != nullptr);

  ledger.close();
  ledger.close();
  CHECK(ledger.is_closed());
  CHECK_EQUAL(ledger.size(), 0);
  CHECK_EQUAL(ledger.releases().size(), 0U);
  CHECK(!ledger.finish(pending, make_fence(), false));
  CHECK(!ledger.finish(early, make_fence(), false));
  CHECK(memory.use_count() > 1);
  early.reset();
  pending.reset();
  ledger.unpin(*leased);
  ledger.unpin(*replaced);
  ledger.release(std::move(late), {kStream});  // keeps nothing alive
  CHECK_EQUAL(ledger.releases().size(), 0U);
  leased.reset();
  CHECK_EQUAL(memory.use_count(), 2);  // of the test and of the replaced entry
  replaced.reset();
  CHECK_EQUAL(memory.use_count(), 1);
}

}  // namespace

int main() {
  planted_faults_of_counts_are_found();
  planted_faults_of_pages_are_found();
  planted_faults_of_entries_are_found();
  entry_has_one_early_copy_at_a_time();
  record_keeps_the_last_keys_once();
  narrow_rows_are_packed_and_looked_up_by_their_width();
  claims_have_one_owner_per_epoch_and_key();
  close_keeps_memory_only_while_leases_and_writes_need_it();
}
