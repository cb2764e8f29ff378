// Compaction: device entries move to the lowest pages, so that the free pages are one run.
//
// Each page moves to the page whose number is the number of used pages below it. So pages that were adjacent
// stay adjacent, and no page moves up.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/ledger.h"

namespace vitcache {

PendingPtr Ledger::begin_compaction() {
  const auto is_early = [](const PendingPtr& pending) { return pending->is_early; };
  if (device_->leased_pages > 0 || device_->pending_pages > 0 ||
      std::any_of(pending_.begin(), pending_.end(), is_early))
    return nullptr;
  reclaim_all();
  std::vector<EntryPtr> entries;
  index_->visit_all([&](const EntryPtr& entry) {
    if (entry->tier == device_.get()) entries.push_back(entry);
  });
  // So that the entries that a failed compaction drops leave in an order that does not depend on their keys.
  std::sort(entries.begin(), entries.end(), [](const EntryPtr& a, const EntryPtr& b) {
    return a->page_numbers().front() < b->page_numbers().front();
  });
  const auto num_pages = static_cast<std::size_t>(device_->layout().num_pages);
  std::vector<bool> is_used(num_pages);
  for (const EntryPtr& entry : entries)
    for (const std::int64_t page : entry->page_numbers()) is_used[static_cast<std::size_t>(page)] = true;
  Pages new_page(num_pages);
  std::int64_t num_used = 0;
  for (std::size_t page = 0; page < num_pages; ++page) {
    new_page[page] = num_used;
    num_used += is_used[page];
  }
  PendingPtr pending = make_pending(Key{}, 0, device_->layout().row_width, 0, Key{});
  pending->is_compaction = true;
  pending->pages = device_->allocate_range(0, num_used, pending->fences);
  device_->pending_pages += static_cast<std::int64_t>(pending->pages.size());
  for (const EntryPtr& entry : entries) {
    Pages pages;
    for (const std::int64_t page : entry->page_numbers())
      pages.push_back(new_page[static_cast<std::size_t>(page)]);
    if (pages == entry->page_numbers()) continue;
    // Other moves overwrite these pages, so all reads of them must be complete, too.
    pending->fences.add_all(entry->fences());
    pin_entry(*entry);
    entry->is_moving = true;
    pending->moves.push_back(
        {entry, device_->describe(std::move(pages), entry->num_rows, entry->row_width())});
  }
  pending_.insert(pending);
  return pending;
}

std::vector<PageMove> Pending::page_moves() const {
  std::vector<PageMove> single;
  for (const Move& move : moves) {
    const Pages& pages = *move.rows.source.pages;
    const Pages& sources = move.entry->page_numbers();
    for (std::size_t i = 0; i < pages.size(); ++i)
      if (pages[i] != sources[i]) single.push_back({pages[i], sources[i], 1});
  }
  std::sort(single.begin(), single.end(),
            [](const PageMove& a, const PageMove& b) { return a.page < b.page; });
  std::vector<PageMove> runs;
  for (const PageMove& move : single) {
    if (!runs.empty() && move.page == runs.back().page + runs.back().count &&
        move.source_page == runs.back().source_page + runs.back().count)
      ++runs.back().count;
    else
      runs.push_back(move);
  }
  return runs;
}

void Ledger::finish_compaction(Pending& pending, const std::optional<Fence>& fence, bool failed) {
  const bool has_moved = fence && !failed;
  FenceSet fences;  // behind all work on the pages that are free afterwards
  if (!has_moved) fences = pending.fences;
  if (fence) fences.add(*fence);
  Pages left = pending.pages, taken;
  for (Move& move : pending.moves) {
    Entry& entry = *move.entry;
    entry.is_moving = false;
    if (has_moved) {
      left.insert(left.end(), entry.page_numbers().begin(), entry.page_numbers().end());
      taken.insert(taken.end(), move.rows.source.pages->begin(), move.rows.source.pages->end());
      entry.rows = std::move(move.rows);
      entry.written = *fence;  // the moves waited for the entry's earlier writes and reads
      entry.reads.clear();
      continue;
    }
    if (fence) entry.record_read(*fence);
    const EntryPtr* current = index_->find(entry.key);
    if (current == nullptr || *current != move.entry) continue;  // it left the cache during the copies
    index_->evict(move.entry);
    if (index_->restore_host_copy(entry))
      ++counts_.demotions;
    else
      count_eviction(entry.key);
    free(move.entry);
  }
  std::sort(left.begin(), left.end());
  std::sort(taken.begin(), taken.end());
  Pages freed;
  std::set_difference(left.begin(), left.end(), taken.begin(), taken.end(), std::back_inserter(freed));
  device_->free(freed, fences);
  for (const Move& move : pending.moves) unpin(*move.entry);  // an entry that left the cache frees its pages
}

}  // namespace vitcache
