// The steps of a caller that chooses itself which entries leave a tier: they evict no entry.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "cache/ledger.h"
#include "check.h"
#include "ledger_cases.h"

namespace {

using vitcache::Entry;
using vitcache::EntryPtr;
using vitcache::Fence;
using vitcache::FenceSet;
using vitcache::Ledger;
using vitcache::PageMove;
using vitcache::Pages;
using vitcache::PendingPtr;
using vitcache::Tier;
using vitcache::WriteTo;

Ledger make_ledger(std::int64_t device_pages, std::int64_t host_pages = 0) {
  return Ledger(policy_maker("lru"), make_tier("device", device_pages, 1),
                host_pages == 0 ? nullptr : make_tier("host", host_pages, 1), 4);
}

EntryPtr entry_of(Ledger& ledger, std::uint64_t number) { return *ledger.index().find(key_of(number)); }

bool put_in_host(Ledger& ledger, std::uint64_t number, std::int64_t num_rows) {
  const PendingPtr pending =
      ledger.begin_write(key_of(number), num_rows, kWidth, 1.0, ledger.epoch(), WriteTo::kHost);
  return pending != nullptr && ledger.finish(pending, make_fence(), false);
}

bool copy_to_host(Ledger& ledger, std::uint64_t number) {
  const PendingPtr copies = ledger.begin_copy_to_host(key_of(number));
  if (copies == nullptr) return false;
  copies->set_copied(make_fence());
  ledger.finish(copies, copies->copied, false);
  return ledger.has_host_copy(key_of(number));
}

PendingPtr begin_run(Ledger& ledger, std::uint64_t number, std::int64_t num_rows) {
  return ledger.begin_contiguous_write(key_of(number), num_rows, kWidth, 1.0, ledger.epoch());
}

void check_consistent(const Ledger& ledger) { CHECK(ledger.find_violations().empty()); }

Pages free_pages(Ledger& ledger) {
  Pages pages = ledger.device().free_pages();
  std::sort(pages.begin(), pages.end());
  return pages;
}

void run_is_the_shortest_that_is_long_enough() {
  const auto tier = make_tier("device", 12, 1);
  FenceSet fences;
  tier->allocate(12, fences);
  tier->free({0, 1, 2, 3}, fences);
  tier->free({9, 8, 7}, fences);
  tier->free({5, 11}, fences);
  CHECK(tier->allocate_run(5, fences).empty());
  CHECK_EQUAL(tier->num_free(), 9);
  CHECK((tier->allocate_run(2, fences) == Pages{7, 8}));
  CHECK((tier->allocate_run(1, fences) == Pages{5}));  // the first of the runs of one page
  CHECK((tier->allocate_run(4, fences) == Pages{0, 1, 2, 3}));
  CHECK((tier->allocate(2, fences) == Pages{11, 9}));  // the last page that was freed is the first
  CHECK_EQUAL(tier->num_free(), 0);
  CHECK(tier->allocate_run(1, fences).empty());
}

void run_has_the_fences_of_its_pages_and_keeps_the_other_ones() {
  const auto tier = make_tier("device", 3, 1);
  FenceSet fences, first, second;
  tier->allocate(3, fences);
  first.add(make_fence());
  second.add(make_fence());
  tier->free({0, 1}, first);
  tier->free({2}, second);
  CHECK((tier->allocate_run(2, fences) == Pages{0, 1}));
  CHECK(fences.fences() == first.fences());
  FenceSet later;
  CHECK((tier->allocate_range(1, 3, later) == Pages{2}));
  CHECK(later.fences() == second.fences());
}

void random_runs_match_a_search_of_all_runs() {
  std::mt19937_64 random(5);
  const auto tier = make_tier("device", 40, 1);
  FenceSet fences;
  std::vector<Pages> taken;
  for (int step = 0; step < 5000; ++step) {
    if (!taken.empty() && random() % 2 == 0) {
      std::swap(taken[random() % taken.size()], taken.back());
      tier->free(taken.back(), fences);
      taken.pop_back();
      continue;
    }
    const auto count = static_cast<std::int64_t>(1 + random() % 8);
    std::vector<bool> is_free(42);
    for (const std::int64_t page : tier->free_pages()) is_free[static_cast<std::size_t>(page + 1)] = true;
    std::int64_t shortest = 0;
    for (std::int64_t first = 0; first < 40; ++first) {
      if (is_free[static_cast<std::size_t>(first)]) continue;  // a run begins behind a page that is not free
      std::int64_t length = 0;
      while (is_free[static_cast<std::size_t>(first + length + 1)]) ++length;
      if (length >= count && (shortest == 0 || length < shortest)) shortest = length;
    }
    Pages pages = random() % 4 == 0 && count <= tier->num_free() ? tier->allocate(count, fences)
                                                                 : tier->allocate_run(count, fences);
    const bool is_run = !pages.empty() && std::is_sorted(pages.begin(), pages.end()) &&
                        pages.back() - pages.front() == count - 1;
    if (shortest == 0) CHECK(pages.empty() || !is_run);
    if (!pages.empty()) taken.push_back(std::move(pages));
  }
}

void contiguous_write_evicts_nothing() {
  Ledger ledger = make_ledger(4);
  for (std::uint64_t number = 0; number < 4; ++number) CHECK(put(ledger, number, 1));
  CHECK(begin_run(ledger, 9, 1) == nullptr);
  CHECK(ledger.discard(key_of(0)) && ledger.discard(key_of(2)));
  CHECK(begin_run(ledger, 9, 2) == nullptr);
  CHECK_EQUAL(ledger.counts().rejections, 0);
  CHECK_EQUAL(ledger.size(), 2);
  CHECK(ledger.discard(key_of(1)));
  const PendingPtr pending = begin_run(ledger, 9, 3);
  CHECK((pending->pages == Pages{0, 1, 2}));
  CHECK(pending->fences.fences().size() == 3);
  check_consistent(ledger);
  CHECK(ledger.finish(pending, make_fence(), false));
  CHECK((entry_of(ledger, 9)->page_numbers() == Pages{0, 1, 2}));
  CHECK_EQUAL(ledger.device().pending_pages, 0);
  check_consistent(ledger);
}

void contiguous_write_keeps_the_entry_that_it_replaces_until_it_is_finished() {
  Ledger ledger = make_ledger(3);
  CHECK(put(ledger, 0, 2));
  CHECK(begin_run(ledger, 0, 2) == nullptr && ledger.contains(key_of(0)));
  const PendingPtr pending = begin_run(ledger, 0, 1);
  CHECK(pending != nullptr && ledger.contains(key_of(0)));
  CHECK(ledger.finish(pending, make_fence(), false));
  CHECK((entry_of(ledger, 0)->page_numbers() == Pages{2}));
  CHECK((free_pages(ledger) == Pages{0, 1}));
}

void contiguous_write_of_rows_that_can_never_be_admitted_is_rejected() {
  Ledger ledger = make_ledger(2);
  CHECK(begin_run(ledger, 0, 3) == nullptr);
  CHECK(ledger.begin_contiguous_write(key_of(0), 1, kWidth, 1.0, ledger.epoch() - 1) == nullptr);
  CHECK_EQUAL(ledger.counts().rejections, 2);
}

void pages_of_earlier_epochs_extend_a_run() {
  Ledger ledger = make_ledger(4, 2);
  for (std::uint64_t number = 0; number < 4; ++number) CHECK(put(ledger, number, 1));
  ledger.advance();
  CHECK_EQUAL(ledger.device().num_free(), 0);
  CHECK((begin_run(ledger, 9, 4)->pages == Pages{0, 1, 2, 3}));
  CHECK(put_in_host(ledger, 5, 2));
  ledger.advance();
  Ledger other = make_ledger(2, 2);
  CHECK(put_in_host(other, 5, 2));
  other.advance();
  CHECK(put(other, 1, 2));
  CHECK(copy_to_host(other, 1));
}

void contiguous_promotion_evicts_nothing() {
  Ledger ledger = make_ledger(3, 2);
  for (std::uint64_t number = 0; number < 3; ++number) CHECK(put(ledger, number, 1));
  CHECK(put_in_host(ledger, 7, 2));
  const EntryPtr source = ledger.pin(key_of(7), 2);
  CHECK(ledger.discard(key_of(0)) && ledger.discard(key_of(2)));
  CHECK(ledger.begin_promotion(source, true) == nullptr);
  CHECK(ledger.contains(key_of(1)));
  check_consistent(ledger);
  CHECK(ledger.discard(key_of(1)));
  const PendingPtr pending = ledger.begin_promotion(source, true);
  CHECK((pending->pages == Pages{0, 1}));
  CHECK(ledger.finish(pending, make_fence(), false));
  CHECK(entry_of(ledger, 7)->tier == &ledger.device() && ledger.has_host_copy(key_of(7)));
  CHECK(ledger.begin_promotion(source, true) == nullptr);  // it was promoted
  ledger.unpin(*source);
  check_consistent(ledger);
}

void copy_to_host_uses_free_pages_only() {
  Ledger ledger = make_ledger(4, 3);
  CHECK(put(ledger, 0, 2) && put(ledger, 1, 1) && put_in_host(ledger, 8, 1));
  CHECK(ledger.begin_copy_to_host(key_of(5)) == nullptr);  // no entry
  CHECK(ledger.begin_copy_to_host(key_of(8)) == nullptr);  // in the host tier
  CHECK(!ledger.has_host_copy(key_of(8)));
  const EntryPtr leased = ledger.pin(key_of(0), 2);
  const PendingPtr copies = ledger.begin_copy_to_host(key_of(0));
  CHECK(copies->is_early && copies->fences.fences() == std::vector<Fence>{leased->written});
  CHECK(ledger.begin_copy_to_host(key_of(0)) == nullptr);  // it is being copied
  CHECK(ledger.begin_compaction() == nullptr);
  copies->set_copied(make_fence());
  ledger.finish(copies, copies->copied, false);
  CHECK(ledger.has_host_copy(key_of(0)) && leased->reads == std::vector<Fence>{*copies->copied});
  CHECK(ledger.begin_copy_to_host(key_of(0)) == nullptr);  // it has a copy
  CHECK(ledger.begin_copy_to_host(key_of(1)) == nullptr);  // no free page
  CHECK(ledger.contains(key_of(8)) && ledger.host()->num_free() == 0);
  CHECK_EQUAL(ledger.counts().writebacks, 1);
  ledger.unpin(*leased);
  check_consistent(ledger);
  Ledger without_host = make_ledger(1);
  CHECK(put(without_host, 0, 1));
  CHECK(without_host.begin_copy_to_host(key_of(0)) == nullptr);
}

void demotion_to_a_copy_frees_the_device_pages_with_their_fences() {
  Ledger ledger = make_ledger(3, 3);
  CHECK(put(ledger, 0, 2) && put(ledger, 1, 1));
  CHECK(!ledger.demote_to_copy(key_of(0)));  // no host copy
  CHECK(copy_to_host(ledger, 0));
  const EntryPtr leased = ledger.pin(key_of(0), 2);
  CHECK(!ledger.is_demotable(key_of(0)) && !ledger.demote_to_copy(key_of(0)));
  leased->record_read(make_fence(3));
  ledger.unpin(*leased);
  const FenceSet fences = leased->fences();
  CHECK_EQUAL(fences.fences().size(), 3U);  // the write, the copy to the host tier, the read
  CHECK(ledger.is_demotable(key_of(0)) && ledger.demote_to_copy(key_of(0)));
  CHECK(entry_of(ledger, 0)->tier == ledger.host() && !ledger.is_demotable(key_of(0)));
  CHECK(!ledger.demote_to_copy(key_of(0)));
  CHECK((free_pages(ledger) == Pages{0, 1}));
  FenceSet kept;
  ledger.device().free(ledger.device().allocate_run(2, kept), kept);
  CHECK(kept.fences() == fences.fences());
  CHECK(ledger.counts().demotions == 1 && ledger.counts().evictions == 0 && ledger.size() == 2);
  check_consistent(ledger);
}

void discard_from_host_keeps_the_device_entry() {
  Ledger ledger = make_ledger(3, 3);
  CHECK(put(ledger, 0, 1) && put(ledger, 1, 1) && put_in_host(ledger, 2, 1));
  CHECK(copy_to_host(ledger, 0));
  CHECK(!ledger.discard_from_host(key_of(1)) && !ledger.discard_from_host(key_of(5)));
  CHECK(ledger.discard_from_host(key_of(0)) && !ledger.discard_from_host(key_of(0)));
  CHECK(ledger.contains(key_of(0)) && ledger.counts().evictions == 0 && ledger.host()->num_free() == 2);
  const EntryPtr leased = ledger.pin(key_of(2), 1);
  CHECK(ledger.discard_from_host(key_of(2)) && !ledger.contains(key_of(2)));
  CHECK(ledger.counts().evictions == 1 && ledger.host()->num_free() == 2);
  ledger.unpin(*leased);
  CHECK_EQUAL(ledger.host()->num_free(), 3);
  CHECK(put(ledger, 3, 1));
  const PendingPtr pending = ledger.begin_write(key_of(4), 1, kWidth, 1.0, ledger.epoch());
  CHECK(ledger.discard_from_host(key_of(0)));  // it is being demoted
  pending->set_copied(make_fence());
  CHECK(ledger.finish(pending, make_fence(), false) && !ledger.contains(key_of(0)));
  check_consistent(ledger);
}

// Entries of 1, 2, 1 and 2 pages in pages 0 to 5; those of the even numbers are dropped: pages 1, 2, 4, 5
// stay.
Ledger make_fragmented(std::int64_t host_pages = 0) {
  Ledger ledger = make_ledger(8, host_pages);
  for (std::uint64_t number = 0; number < 4; ++number)
    CHECK(put(ledger, number, 1 + static_cast<std::int64_t>(number % 2)));
  CHECK(ledger.discard(key_of(0)) && ledger.discard(key_of(2)));
  return ledger;
}

void compaction_moves_entries_to_the_lowest_pages() {
  Ledger ledger = make_fragmented();
  const EntryPtr first = entry_of(ledger, 1), second = entry_of(ledger, 3);
  second->record_read(make_fence(3));
  FenceSet expected = first->fences();
  expected.add_all(second->fences());
  const PendingPtr pending = ledger.begin_compaction();
  CHECK(pending->is_compaction && (pending->pages == Pages{0, 3}));
  const std::vector<PageMove> moves = pending->page_moves();
  CHECK_EQUAL(moves.size(), 2U);
  CHECK(moves[0].page == 0 && moves[0].source_page == 1 && moves[0].count == 2);
  CHECK(moves[1].page == 2 && moves[1].source_page == 4 && moves[1].count == 2);
  for (const Fence& fence : expected.fences()) {
    const std::vector<Fence>& fences = pending->fences.fences();
    CHECK(std::find(fences.begin(), fences.end(), fence) != fences.end());
  }
  check_consistent(ledger);
  CHECK(ledger.begin_compaction() == nullptr);
  CHECK(ledger.pin(key_of(1), -1) == nullptr && ledger.contains(key_of(1)));  // it is being moved
  CHECK(!ledger.is_demotable(key_of(1)));
  const Fence moved = make_fence();
  CHECK(!ledger.finish(pending, moved, false));
  CHECK((first->page_numbers() == Pages{0, 1}) && (second->page_numbers() == Pages{2, 3}));
  CHECK(second->written == moved && second->reads.empty() && second->leases == 0);
  CHECK((free_pages(ledger) == Pages{4, 5, 6, 7}));
  FenceSet fences;
  ledger.device().free(ledger.device().allocate_range(4, 6, fences), fences);
  CHECK(fences.fences() == std::vector<Fence>{moved});
  const EntryPtr found = ledger.pin(key_of(1), 2);
  CHECK(found == first && first->rows.source.row_address(1) == 4096 + 8);
  ledger.unpin(*found);
  check_consistent(ledger);
}

void compaction_of_compact_entries_moves_nothing() {
  Ledger ledger = make_ledger(4);
  PendingPtr pending = ledger.begin_compaction();  // no entry at all
  CHECK(pending->pages.empty() && pending->page_moves().empty());
  ledger.finish(pending, make_fence(), false);
  CHECK(put(ledger, 0, 1) && put(ledger, 1, 2));
  const Fence written = entry_of(ledger, 1)->written;
  pending = ledger.begin_compaction();
  CHECK(pending->pages.empty() && pending->moves.empty() && pending->fences.empty());
  CHECK_EQUAL(entry_of(ledger, 1)->leases, 0);
  ledger.finish(pending, make_fence(), false);
  CHECK(entry_of(ledger, 1)->written == written && ledger.device().num_free() == 1);
  check_consistent(ledger);
}

void compaction_keeps_the_order_of_pages_within_an_entry() {
  Ledger ledger = make_ledger(6);
  CHECK(put(ledger, 0, 1) && put(ledger, 1, 1) && put(ledger, 2, 1) && put(ledger, 3, 1));
  CHECK(ledger.discard(key_of(2)) && ledger.discard(key_of(0)));
  CHECK(put(ledger, 4, 3));  // in the pages 0, 2 and 4, which are not adjacent
  const Pages before = entry_of(ledger, 4)->page_numbers();
  CHECK(ledger.discard(key_of(1)));
  const PendingPtr pending = ledger.begin_compaction();
  ledger.finish(pending, make_fence(), false);
  CHECK((before == Pages{0, 2, 4}) && (entry_of(ledger, 4)->page_numbers() == Pages{0, 1, 3}));
  CHECK((entry_of(ledger, 3)->page_numbers() == Pages{2}));
  check_consistent(ledger);
}

void compaction_is_refused_while_device_pages_are_in_use() {
  Ledger ledger = make_fragmented(4);
  const EntryPtr leased = ledger.pin(key_of(1), 2);
  CHECK(ledger.begin_compaction() == nullptr);
  CHECK(ledger.discard(key_of(1)));
  CHECK(ledger.begin_compaction() == nullptr);  // of a dropped entry
  ledger.unpin(*leased);
  PendingPtr pending = ledger.begin_write(key_of(9), 1, kWidth, 1.0, ledger.epoch());
  CHECK(ledger.begin_compaction() == nullptr);
  ledger.finish(pending, std::nullopt, true);
  pending = ledger.begin_write(key_of(9), 1, kWidth, 1.0, ledger.epoch(), WriteTo::kHost);
  const PendingPtr compaction = ledger.begin_compaction();  // host pages do not matter
  CHECK(compaction != nullptr);
  ledger.finish(compaction, make_fence(), false);
  ledger.finish(pending, make_fence(), false);
  check_consistent(ledger);
}

void compaction_frees_pages_of_earlier_epochs() {
  Ledger ledger = make_ledger(4);
  CHECK(put(ledger, 0, 2));
  ledger.advance();
  CHECK(put(ledger, 1, 2));
  CHECK((entry_of(ledger, 1)->page_numbers() == Pages{2, 3}));
  ledger.finish(ledger.begin_compaction(), make_fence(), false);
  CHECK((entry_of(ledger, 1)->page_numbers() == Pages{0, 1}));
  CHECK(ledger.num_stale_indexes() == 0 && (free_pages(ledger) == Pages{2, 3}));
}

void entries_that_leave_the_cache_during_a_compaction_free_their_pages() {
  for (const bool failed : {false, true}) {
    Ledger ledger = make_fragmented(4);
    const PendingPtr pending = ledger.begin_compaction();
    CHECK(ledger.discard(key_of(1)));
    CHECK(put(ledger, 9, 2));  // in pages that no entry moves to
    check_consistent(ledger);
    CHECK(entry_of(ledger, 9)->page_numbers().front() >= 6);
    ledger.clear();
    check_consistent(ledger);
    ledger.finish(pending, make_fence(), failed);
    CHECK_EQUAL(ledger.device().num_free(), 8);
    check_consistent(ledger);
  }
}

void failed_compaction_demotes_entries_with_a_host_copy_and_drops_the_other_ones() {
  for (const bool has_fence : {false, true}) {
    Ledger ledger = make_fragmented(4);
    CHECK(copy_to_host(ledger, 1));
    const EntryPtr lost = entry_of(ledger, 3);
    const PendingPtr pending = ledger.begin_compaction();
    const std::int64_t evictions = ledger.counts().evictions;
    const Fence fence = make_fence();
    ledger.finish(pending, has_fence ? std::optional<Fence>(fence) : std::nullopt, true);
    CHECK(ledger.contains(key_of(1)) && entry_of(ledger, 1)->tier == ledger.host());
    CHECK(!ledger.contains(key_of(3)) && ledger.counts().demotions == 1);
    CHECK(ledger.counts().evictions == evictions + 1 && ledger.size() == 1);
    check_consistent(ledger);
    FenceSet fences;
    const Pages pages = ledger.device().allocate_range(0, 6, fences);
    const std::vector<Fence>& kept = fences.fences();
    CHECK(std::find(kept.begin(), kept.end(), lost->written) != kept.end());
    CHECK((std::find(kept.begin(), kept.end(), fence) != kept.end()) == has_fence);
    ledger.device().free(pages, fences);
  }
}

void close_during_a_compaction_frees_its_memory() {
  auto memory = std::make_shared<int>();
  {
    Ledger ledger(policy_maker("lru"), make_tier("device", 4, 1, memory), nullptr);
    CHECK(put(ledger, 0, 1) && put(ledger, 1, 1) && ledger.discard(key_of(0)));
    PendingPtr pending = ledger.begin_compaction();
    ledger.close();
    ledger.finish(pending, make_fence(), false);
    pending.reset();
    CHECK_EQUAL(memory.use_count(), 1);
  }
}

}  // namespace

int main() {
  run_is_the_shortest_that_is_long_enough();
  run_has_the_fences_of_its_pages_and_keeps_the_other_ones();
  random_runs_match_a_search_of_all_runs();
  contiguous_write_evicts_nothing();
  contiguous_write_keeps_the_entry_that_it_replaces_until_it_is_finished();
  contiguous_write_of_rows_that_can_never_be_admitted_is_rejected();
  pages_of_earlier_epochs_extend_a_run();
  contiguous_promotion_evicts_nothing();
  copy_to_host_uses_free_pages_only();
  demotion_to_a_copy_frees_the_device_pages_with_their_fences();
  discard_from_host_keeps_the_device_entry();
  compaction_moves_entries_to_the_lowest_pages();
  compaction_of_compact_entries_moves_nothing();
  compaction_keeps_the_order_of_pages_within_an_entry();
  compaction_is_refused_while_device_pages_are_in_use();
  compaction_frees_pages_of_earlier_epochs();
  entries_that_leave_the_cache_during_a_compaction_free_their_pages();
  failed_compaction_demotes_entries_with_a_host_copy_and_drops_the_other_ones();
  close_during_a_compaction_frees_its_memory();
}
