// Pending writes and copies, and the pages that they own until they are finished.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/entry.h"
#include "cache/fence.h"
#include "cache/tier.h"
#include "placement/paged_rows.h"

namespace vitcache {

// A pending copy of a device entry to pages of the host tier.
struct Demotion {
  EntryPtr entry;
  std::shared_ptr<Tier> tier;  // of the host tier
  Pages pages;
  std::shared_ptr<void> checksum;  // opaque, as in Entry

  // The entry of the host tier; `copied` is the fence behind the copy.
  EntryPtr host_entry(const Fence& copied) const {
    auto made = std::make_shared<Entry>(entry->key, entry->cost, tier,
                                        tier->describe(pages, entry->num_rows, entry->row_width()), copied);
    made->tenant = entry->tenant;
    made->is_offered = entry->is_offered;
    made->checksum = checksum;
    return made;
  }
};

using DemotionPtr = std::shared_ptr<Demotion>;

// The copy in the host tier of rows that a pending write writes to the device tier.
struct HostCopy {
  std::shared_ptr<Tier> tier;  // of the host tier
  Pages pages;
  FenceSet fences;              // wait for them before writing `pages`
  std::optional<Fence> copied;  // behind the copy, once it is queued
};

// The move of a device entry to other pages by a pending compaction. Until it ends, the entry is pinned and
// owns its old pages.
struct Move {
  EntryPtr entry;
  PagedRows rows;  // in the new pages
};

// A run of pages that are copied to lower pages of their tier.
struct PageMove {
  std::int64_t page;
  std::int64_t source_page;
  std::int64_t count;
};

// A pending `put`, reservation, promotion or fetch; or, without `pages`, pending early copies to the host
// tier; or a pending compaction, which owns the free pages that it moves rows to.
struct Pending {
  bool is_early = false;  // early copies only: nothing was evicted
  bool is_compaction = false;
  bool is_fetch = false;     // the rows are copied from a tier below the host tier
  bool is_offer = false;     // the new entry is offered to the tiers below when it is inserted
  bool is_rejected = false;  // `discard` or `forget` was called for the rows, so they are not inserted
  bool is_open = true;       // neither inserted nor freed yet

  std::int64_t epoch = 0;
  Key key{};
  std::int64_t num_rows = 0;
  std::int64_t row_width = 0;
  double cost = 0;
  Key tenant{};                  // as in Entry
  std::shared_ptr<Tier> tier;    // of the new entry
  std::shared_ptr<void> memory;  // of `pages`
  Pages pages;                   // of the new entry
  Pages leftover_pages;          // of victims; the new entry does not need them
  EntryPtr source;               // the host entry that is promoted; null for a put
  std::optional<HostCopy> host_copy;
  std::shared_ptr<void> checksum;  // opaque, of the rows in host memory, as in Entry

  // Copies of entries to the host tier. They own the host pages that they write.
  std::vector<DemotionPtr> demotions;
  std::vector<Move> moves;  // of a compaction
  // Wait for them before writing `pages` or the pages of `demotions`. Once the copies are queued, the set
  // contains only `copied`, the fence behind the copies.
  FenceSet fences;
  std::optional<Fence> copied;

  bool inserts_rows() const { return !is_early && !is_compaction; }

  void set_copied(Fence fence) {
    fences.clear();
    fences.add(fence);
    copied = std::move(fence);
  }

  // The copies of a compaction, the lowest page first: no copy writes pages that a later copy reads.
  std::vector<PageMove> page_moves() const;

  // Number of pages of a tier that the write and its copies own.
  std::int64_t num_pages_of(const Tier& owner) const {
    std::size_t count = tier.get() == &owner ? pages.size() + leftover_pages.size() : 0;
    if (host_copy && host_copy->tier.get() == &owner) count += host_copy->pages.size();
    for (const DemotionPtr& demotion : demotions)
      if (demotion->tier.get() == &owner) count += demotion->pages.size();
    return static_cast<std::int64_t>(count);
  }
};

using PendingPtr = std::shared_ptr<Pending>;

}  // namespace vitcache
