// The ledger with tiers below the host tier: fetches, offers, peeks, and rows that are forgotten.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cache/ledger.h"
#include "cache/offers.h"
#include "check.h"
#include "ledger_cases.h"

namespace {

using vitcache::EntryPtr;
using vitcache::Fence;
using vitcache::FenceSet;
using vitcache::Key;
using vitcache::Ledger;
using vitcache::Offer;
using vitcache::Offers;
using vitcache::PendingPtr;
using vitcache::WriteTo;

EntryPtr entry_of(Ledger& ledger, std::uint64_t number) { return *ledger.index().find(key_of(number)); }

// Inserts the rows of a pending write whose copies are queued.
bool commit(Ledger& ledger, const PendingPtr& pending) {
  if (!pending->demotions.empty()) pending->set_copied(make_fence());
  if (pending->host_copy) pending->host_copy->copied = make_fence();
  return ledger.finish(pending, make_fence(), false);
}

// A page has one row; the ledger has this many pages in each tier.
std::unique_ptr<Ledger> make_ledger(std::int64_t device_pages, std::int64_t host_pages) {
  return std::make_unique<Ledger>(policy_maker("lru"), make_tier("device", device_pages, 1),
                                  make_tier("host", host_pages, 1), 8);
}

bool put_of(Ledger& ledger, std::uint64_t number, const Key& tenant, WriteTo target = WriteTo::kDevice,
            bool is_offer = false) {
  return commit(ledger,
                ledger.begin_write(key_of(number), 1, kWidth, 1.0, ledger.epoch(), target, tenant, is_offer));
}

PendingPtr fetch_of(Ledger& ledger, std::uint64_t number, const Key& tenant = {}) {
  return ledger.begin_fetch(key_of(number), 1, kWidth, 1.0, ledger.epoch(), tenant);
}

void look_up_reads_the_first_two_lines_of_an_entry() {
  Ledger ledger(policy_maker("lru"), make_tier("device", 4, 1), nullptr);
  CHECK(put(ledger, 0, 1));
  const EntryPtr entry = entry_of(ledger, 0);
  const auto* const start = reinterpret_cast<const char*>(entry.get());
  for (const void* member :
       {static_cast<const void*>(&entry->is_offered), static_cast<const void*>(&entry->hits),
        static_cast<const void*>(&entry->leases), static_cast<const void*>(&entry->num_pages),
        static_cast<const void*>(&entry->cost), static_cast<const void*>(&entry->tier)})
    CHECK(static_cast<const char*>(member) - start < 128);
}

void fetched_rows_are_inserted_in_the_host_tier() {
  const auto ledger = make_ledger(2, 2);
  const PendingPtr pending = fetch_of(*ledger, 0, key_of(8));
  CHECK(pending != nullptr && pending->is_fetch && pending->tier.get() == ledger->host());
  CHECK_EQUAL(ledger->host()->pending_pages, 1);
  CHECK(!ledger->contains(key_of(0)) && ledger->find_violations().empty());
  CHECK(commit(*ledger, pending));
  const EntryPtr entry = entry_of(*ledger, 0);
  CHECK(entry->tier == ledger->host() && entry->is_offered && entry->tenant == key_of(8));
  CHECK_EQUAL(ledger->counts().insertions, 1);
  CHECK(fetch_of(*ledger, 0) == nullptr);  // it is there
  // The oldest host entry is evicted for a fetch, a leased one is not.
  const EntryPtr lease = ledger->pin(key_of(0), 1);
  CHECK(commit(*ledger, fetch_of(*ledger, 1)) && commit(*ledger, fetch_of(*ledger, 2)));
  CHECK(ledger->contains(key_of(0)) && !ledger->contains(key_of(1)) && ledger->contains(key_of(2)));
  const EntryPtr other = ledger->pin(key_of(2), 1);
  CHECK(fetch_of(*ledger, 3) == nullptr);
  CHECK(ledger->begin_fetch(key_of(3), 1, kWidth, 1.0, ledger->epoch() + 1, Key{}) == nullptr);
  CHECK_EQUAL(ledger->counts().rejections, 0);
  ledger->unpin(*lease);
  ledger->unpin(*other);
  CHECK(ledger->find_violations().empty());
  Ledger without_host(policy_maker("lru"), make_tier("device", 2, 1), nullptr);
  CHECK(fetch_of(without_host, 0) == nullptr);
}

// `prepare` happens between the begin and the end of a fetch of key 0, whose rows must not be inserted then.
void check_late_fetch(const std::function<void(Ledger&)>& prepare, bool has_entry) {
  const auto ledger = make_ledger(2, 4);
  const PendingPtr pending = fetch_of(*ledger, 0, key_of(8));
  prepare(*ledger);
  const std::int64_t insertions = ledger->counts().insertions;
  CHECK(!commit(*ledger, pending));
  CHECK(ledger->contains(key_of(0)) == has_entry);
  CHECK_EQUAL(ledger->counts().insertions, insertions);
  CHECK_EQUAL(ledger->counts().rejections, 0);
  CHECK_EQUAL(ledger->host()->pending_pages, 0);
  CHECK(ledger->find_violations().empty());
}

void late_fetch_is_inserted_unless_its_key_changed() {
  check_late_fetch([](Ledger& ledger) { CHECK(put(ledger, 0, 1)); }, true);
  check_late_fetch([](Ledger& ledger) { CHECK(!ledger.discard(key_of(0))); }, false);
  check_late_fetch([](Ledger& ledger) { CHECK_EQUAL(ledger.forget(key_of(0)), 0); }, false);
  check_late_fetch([](Ledger& ledger) { CHECK_EQUAL(ledger.forget_tenant(key_of(8)), 0); }, false);
  check_late_fetch([](Ledger& ledger) { ledger.advance(); }, false);
  check_late_fetch([](Ledger& ledger) { ledger.clear(); }, false);
  check_late_fetch([](Ledger& ledger) { ledger.close(); }, false);
  const auto ledger = make_ledger(2, 4);
  const PendingPtr pending = fetch_of(*ledger, 0, key_of(8));
  CHECK(put(*ledger, 0, 1) && ledger->pin(key_of(0), 7) == nullptr);  // dropped, but not discarded
  CHECK(ledger->forget_tenant(key_of(9)) == 0 && !ledger->discard(key_of(1)));
  CHECK(commit(*ledger, pending));
}

void entry_that_is_being_demoted_is_not_fetched() {
  const auto ledger = make_ledger(1, 4);
  CHECK(put(*ledger, 0, 1));
  const PendingPtr pending = ledger->begin_write(key_of(1), 1, kWidth, 1.0, ledger->epoch());
  CHECK(!ledger->contains(key_of(0)) && fetch_of(*ledger, 0) == nullptr);
  CHECK(commit(*ledger, pending) && ledger->contains(key_of(0)));
}

void tenant_and_offer_follow_an_entry_through_the_tiers() {
  const Key tenant = key_of(8);
  const auto ledger = make_ledger(2, 4);
  ledger->set_write_back(1);
  const auto check = [&](const char* tier, bool is_offered) {
    const EntryPtr entry = entry_of(*ledger, 0);
    CHECK(entry->tier->layout().name == tier && entry->tenant == tenant);
    CHECK(entry->is_offered == is_offered);
    CHECK(ledger->find_violations().empty());
  };
  CHECK(put_of(*ledger, 0, tenant));
  check("device", false);
  const PendingPtr early = ledger->begin_copy_to_host(key_of(0));
  early->set_copied(make_fence());
  ledger->finish(early, make_fence(), false);
  ledger->unpin(*ledger->pin(key_of(0), 1));  // offers the entry after its host copy was made
  check("device", true);
  CHECK(ledger->demote_to_copy(key_of(0)));
  check("host", true);
  const EntryPtr source = entry_of(*ledger, 0);
  CHECK(commit(*ledger, ledger->begin_promotion(source)));
  check("device", true);
  CHECK(ledger->discard_from_host(key_of(0)));
  const PendingPtr demoting = ledger->begin_write(key_of(1), 2, kWidth, 1.0, ledger->epoch());
  ledger->retract_offer(key_of(0));  // while it is being demoted
  CHECK(commit(*ledger, demoting));
  check("host", false);
  CHECK(put_of(*ledger, 0, tenant, WriteTo::kBoth) && ledger->demote_to_copy(key_of(0)));
  check("host", false);
  CHECK(ledger->discard(key_of(1)) && put(*ledger, 2, 1) && put_of(*ledger, 0, tenant));
  CHECK(ledger->discard(key_of(2)));
  const PendingPtr compaction = ledger->begin_compaction();
  ledger->finish(compaction, make_fence(), false);
  check("device", false);
}

void entries_are_offered_at_a_number_of_hits() {
  const auto ledger = make_ledger(4, 4);
  const auto hit = [&](std::uint64_t number) { ledger->unpin(*ledger->pin(key_of(number), 1)); };
  CHECK(put_of(*ledger, 0, key_of(8)) && put(*ledger, 1, 1));
  for (int i = 0; i < 5; ++i) hit(0);
  CHECK(!ledger->is_due() && ledger->take_offers().empty());  // off
  ledger->set_write_back(2);
  hit(1);
  CHECK(!ledger->is_due());
  hit(1);
  hit(0);
  hit(0);
  CHECK(ledger->is_due() && ledger->find_violations().empty());
  std::vector<Offer> offers = ledger->take_offers();
  CHECK(!ledger->is_due());
  CHECK_EQUAL(offers.size(), 2U);
  CHECK(offers[0].key == key_of(1) && offers[0].tenant == Key{} && offers[1].key == key_of(0));
  CHECK(offers[1].tenant == key_of(8) && offers[1].num_rows == 1 && offers[1].row_width == kWidth);
  CHECK_EQUAL(offers[1].num_bytes, 8);
  hit(0);
  CHECK(ledger->take_offers().empty());
  ledger->retract_offer(key_of(0));
  ledger->retract_offer(key_of(5));  // not in the cache
  for (int i = 0; i < 7; ++i) hit(0);
  CHECK(!ledger->is_due());  // a refused entry is offered again after as many hits as it had
  hit(0);
  CHECK_EQUAL(ledger->take_offers().size(), 1U);
  // An insertion offers if it is asked to, or at 0 hits. A promotion and a fetch do not.
  CHECK(put_of(*ledger, 2, Key{}, WriteTo::kHost, true));
  CHECK_EQUAL(ledger->take_offers().size(), 1U);
  ledger->set_write_back(0);
  CHECK(put(*ledger, 3, 1) && commit(*ledger, fetch_of(*ledger, 4)));
  CHECK(commit(*ledger, ledger->begin_promotion(entry_of(*ledger, 4))));
  offers = ledger->take_offers();
  CHECK(offers.size() == 1 && offers[0].key == key_of(3));
  CHECK(put(*ledger, 3, 1) && ledger->is_due());
  ledger->advance();  // offers of an earlier epoch are lost
  CHECK(!ledger->is_due() && ledger->take_offers().empty());
}

void offers_are_bounded_and_lost_offers_are_made_again() {
  const auto most = static_cast<std::int64_t>(Offers::kMostWaiting);
  const auto ledger = make_ledger(most + 1, 1);
  ledger->set_write_back(1);
  for (std::int64_t number = 0; number <= most; ++number)
    CHECK(put(*ledger, static_cast<std::uint64_t>(number), 1));
  const auto hit_all = [&] {
    for (std::int64_t number = 0; number <= most; ++number)
      ledger->unpin(*ledger->pin(key_of(static_cast<std::uint64_t>(number)), 1));
  };
  hit_all();
  CHECK_EQUAL(ledger->take_offers().size(), Offers::kMostWaiting);
  hit_all();
  const std::vector<Offer> offers = ledger->take_offers();
  CHECK(offers.size() == 1 && offers[0].key == key_of(static_cast<std::uint64_t>(most)));
}

void fetch_that_may_not_evict_uses_free_host_pages() {
  const auto ledger = make_ledger(2, 1);
  const auto fetch = [&](std::uint64_t number) {
    return ledger->begin_fetch(key_of(number), 1, kWidth, 1.0, ledger->epoch(), Key{}, false);
  };
  CHECK(commit(*ledger, fetch(0)));
  CHECK(fetch(1) == nullptr && ledger->contains(key_of(0)));
  ledger->advance();
  CHECK(fetch(1) != nullptr);  // in a page of an entry of an earlier epoch
}

void peek_on_the_host_pins_a_host_entry_or_a_host_copy() {
  const auto ledger = make_ledger(2, 2);
  CHECK(put_of(*ledger, 0, Key{}) && put_of(*ledger, 1, Key{}, WriteTo::kHost));
  CHECK(ledger->peek(key_of(0), 1, kWidth, true) == nullptr);
  const EntryPtr entry = ledger->peek(key_of(1), 1, kWidth, true);
  CHECK(entry != nullptr && entry->tier == ledger->host());
  CHECK(put_of(*ledger, 2, Key{}, WriteTo::kBoth));
  const EntryPtr copy = ledger->peek(key_of(2), 1, kWidth, true);
  CHECK(copy != nullptr && copy->tier == ledger->host());
  CHECK(ledger->device().leased_pages == 0 && ledger->peek(key_of(2), 2, kWidth, true) == nullptr);
  CHECK(ledger->discard_from_host(key_of(2)) && ledger->peek(key_of(2), 1, kWidth, true) == nullptr);
  ledger->unpin(*entry);
  ledger->unpin(*copy);
  CHECK(ledger->find_violations().empty());
}

void entry_is_offered_once_on_demand() {
  const auto ledger = make_ledger(2, 2);
  CHECK(put_of(*ledger, 0, Key{}));
  ledger->offer(key_of(0));
  ledger->offer(key_of(1));  // it is in no tier
  CHECK_EQUAL(ledger->take_offers().size(), 1U);
  ledger->offer(key_of(0));
  CHECK_EQUAL(ledger->take_offers().size(), 0U);
  ledger->retract_offer(key_of(0));
  ledger->offer(key_of(0));
  CHECK_EQUAL(ledger->take_offers().size(), 1U);
}

void peek_changes_nothing_but_the_pin() {
  const auto ledger = make_ledger(2, 2);
  ledger->set_write_back(1);
  CHECK(put(*ledger, 0, 1) && put(*ledger, 1, 1));
  const EntryPtr entry = ledger->peek(key_of(0), 1, kWidth);
  CHECK(entry != nullptr && entry->leases == 1 && entry->hits == 0);
  CHECK(ledger->peek(key_of(0), 2, kWidth) == nullptr && ledger->peek(key_of(0), 1, 1) == nullptr);
  CHECK(ledger->peek(key_of(2), 1, kWidth) == nullptr && ledger->contains(key_of(0)));
  CHECK(ledger->counts().misses == 0 && ledger->device().hits.hits == 0 && !ledger->is_due());
  CHECK(ledger->find_violations().empty());
  ledger->unpin(*entry);
  CHECK(put(*ledger, 2, 1) && entry_of(*ledger, 0)->tier == ledger->host());  // it was the next victim
  CHECK(put(*ledger, 3, 1));
  CHECK(ledger->discard(key_of(2)));
  const PendingPtr compaction = ledger->begin_compaction();
  CHECK(compaction != nullptr && !compaction->moves.empty());
  CHECK(ledger->peek(key_of(3), 1, kWidth) == nullptr);  // its rows move
  ledger->finish(compaction, make_fence(), false);
}

void forget_drops_entries_and_rejects_writes() {
  const Key tenant = key_of(8);
  const auto ledger = make_ledger(2, 8);
  CHECK(put_of(*ledger, 0, tenant, WriteTo::kBoth) && put_of(*ledger, 1, tenant));
  CHECK(put_of(*ledger, 2, key_of(9)));  // demotes key 0 to its copy
  const EntryPtr source = entry_of(*ledger, 0);
  const PendingPtr promotion = ledger->begin_promotion(source);  // demotes key 1
  CHECK(promotion->demotions.size() == 1);
  const PendingPtr fetch = fetch_of(*ledger, 3, tenant);
  const PendingPtr write =
      ledger->begin_write(key_of(4), 1, kWidth, 1.0, ledger->epoch(), WriteTo::kBoth, tenant);
  const PendingPtr other = fetch_of(*ledger, 5, key_of(9));
  CHECK(fetch != nullptr && write != nullptr && other != nullptr);
  CHECK_EQUAL(ledger->forget_tenant(tenant), 2);
  CHECK(ledger->find_violations().empty());
  for (const PendingPtr& pending : {promotion, fetch, write}) CHECK(!commit(*ledger, pending));
  CHECK(commit(*ledger, other));
  CHECK_EQUAL(ledger->counts().rejections, 1);  // of the write
  for (const std::uint64_t number : {0U, 1U, 3U, 4U}) CHECK(!ledger->contains(key_of(number)));
  CHECK(ledger->contains(key_of(5)) && ledger->find_violations().empty());
  CHECK_EQUAL(ledger->forget_tenant(tenant), 0);
  CHECK(put_of(*ledger, 4, tenant));  // a later write is of no concern
  const PendingPtr again = ledger->begin_write(key_of(4), 1, kWidth, 1.0, ledger->epoch());
  CHECK_EQUAL(ledger->forget(entry_of(*ledger, 4)->key), 1);
  CHECK(!commit(*ledger, again) && !ledger->contains(key_of(4)));
  CHECK_EQUAL(ledger->counts().rejections, 2);
  CHECK(ledger->host()->pending_pages == 0 && ledger->device().pending_pages == 0);
  CHECK(ledger->find_violations().empty());
  const std::vector<Key> left = ledger->evicted().take();
  CHECK(std::find(left.begin(), left.end(), key_of(0)) != left.end());
  CHECK(std::find(left.begin(), left.end(), key_of(1)) != left.end());
}

// The pages of a write that was forgotten are written again only behind its work.
void rejected_pages_keep_the_fences_of_their_write() {
  const auto ledger = make_ledger(1, 1);
  const PendingPtr write = ledger->begin_write(key_of(0), 1, kWidth, 1.0, ledger->epoch(), WriteTo::kBoth);
  const Fence written = make_fence(), copied = make_fence(kStream + 1);
  write->host_copy->copied = copied;
  CHECK_EQUAL(ledger->forget(key_of(0)), 0);
  CHECK(!ledger->finish(write, written, false));
  const PendingPtr next = ledger->begin_write(key_of(1), 1, kWidth, 1.0, ledger->epoch(), WriteTo::kBoth);
  const auto waits_for = [](const FenceSet& fences, const Fence& fence) {
    return std::find(fences.fences().begin(), fences.fences().end(), fence) != fences.fences().end();
  };
  CHECK(waits_for(next->fences, written) && waits_for(next->fences, copied));
  CHECK(waits_for(next->host_copy->fences, copied));
}

// A store below may write the pages of a fetch until it is closed: the fetch stays pending so long.
void quarantined_pages_stay_used_and_alive_after_close() {
  auto memory = std::make_shared<int>();
  PendingPtr fetch;
  {
    Ledger ledger(policy_maker("lru"), make_tier("device", 1, 1), make_tier("host", 2, 1, memory));
    fetch = fetch_of(ledger, 0);
    CHECK_EQUAL(ledger.host()->num_available(), 1);
    CHECK_EQUAL(ledger.host()->use().used_bytes, 8);
    ledger.advance();
    ledger.clear();
    CHECK_EQUAL(ledger.host()->num_available(), 1);
    CHECK(commit(ledger, fetch_of(ledger, 1)) && fetch_of(ledger, 2) != nullptr);
    CHECK(ledger.find_violations().empty());
    ledger.close();
    CHECK_EQUAL(ledger.host()->pending_pages, 2);
  }
  CHECK(memory.use_count() > 1);
  fetch.reset();
  CHECK_EQUAL(memory.use_count(), 1);
}

}  // namespace

int main() {
  look_up_reads_the_first_two_lines_of_an_entry();
  fetched_rows_are_inserted_in_the_host_tier();
  late_fetch_is_inserted_unless_its_key_changed();
  entry_that_is_being_demoted_is_not_fetched();
  tenant_and_offer_follow_an_entry_through_the_tiers();
  entries_are_offered_at_a_number_of_hits();
  offers_are_bounded_and_lost_offers_are_made_again();
  fetch_that_may_not_evict_uses_free_host_pages();
  peek_on_the_host_pins_a_host_entry_or_a_host_copy();
  entry_is_offered_once_on_demand();
  peek_changes_nothing_but_the_pin();
  forget_drops_entries_and_rejects_writes();
  rejected_pages_keep_the_fences_of_their_write();
  quarantined_pages_stay_used_and_alive_after_close();
}
