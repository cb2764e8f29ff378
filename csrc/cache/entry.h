// An entry: one item's rows in the pages of one tier.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cache/fence.h"
#include "cache/key.h"
#include "cache/policy.h"
#include "cache/tier.h"
#include "placement/paged_rows.h"

namespace vitcache {

// One item's rows in the pages of one tier, compared by identity. The ledger changes it; a lease reads it.
//
// A look-up reads two lines of the CPU's cache, which hold the members up to `tier`.
struct alignas(64) Entry : PolicyNode {
  Entry(const Key& entry_key, double encode_ms, std::shared_ptr<Tier> own_tier, PagedRows paged_rows,
        Fence write_fence)
      : PolicyNode(entry_key),
        is_narrow(paged_rows.width != own_tier->layout().row_width),
        num_rows(paged_rows.source.num_rows),
        num_pages(static_cast<std::int64_t>(paged_rows.source.pages->size())),
        cost(encode_ms),
        tier(own_tier.get()),
        tier_owner(std::move(own_tier)),
        rows(std::move(paged_rows)),
        memory(tier->memory()),
        written(std::move(write_fence)) {}

  std::int64_t row_width() const { return is_narrow ? rows.width : tier->layout().row_width; }
  std::int64_t num_bytes() const {
    return num_rows * (is_narrow ? rows.source.row_stride : tier->layout().row_bytes);
  }
  const Pages& page_numbers() const { return *rows.source.pages; }

  // The fences that must be complete before the pages are written again.
  FenceSet fences() const {
    FenceSet fences;
    fences.add(written);
    for (const Fence& read : reads) fences.add(read);
    return fences;
  }

  // Replaces the fence behind the last read on the fence's stream.
  void record_read(const Fence& fence) {
    if (fence.is_complete()) return;
    for (Fence& read : reads) {
      if (read.stream == fence.stream) {
        read = fence;
        return;
      }
    }
    reads.push_back(fence);
  }

  // The rows are narrower than those of the tier. First, so that it lies in the space behind the last member
  // of PolicyNode: a look-up of full rows does not read `rows`.
  bool is_narrow;
  bool is_moving = false;   // a pending compaction moves the rows, so no look-up may find them
  bool is_offered = false;  // to the tiers below the host tier, or fetched from one of them
  std::int64_t leases = 0;
  std::int64_t hits = 0;  // since the entry was inserted into its tier
  std::int64_t num_rows;
  std::int64_t num_pages;
  double cost;  // the encode time in milliseconds that a hit saves
  Tier* tier;
  std::shared_ptr<Tier> tier_owner;
  bool is_dropped = false;  // in no index; its last release frees the pages
  PagedRows rows;
  std::shared_ptr<void> memory;    // of the pages
  Fence written;                   // behind the copy into the pages
  std::vector<Fence> reads;        // per stream, behind its last read
  std::shared_ptr<void> checksum;  // opaque: the future of the CRC-32 of rows in host memory
  // Last, as look-ups do not read them.
  std::int64_t least_hits_of_offer = 0;  // after a refused offer
  Key tenant{};                          // a digest that names the owner of the rows; not part of the key
};

using EntryPtr = std::shared_ptr<Entry>;

}  // namespace vitcache
