// The pages of one tier: which are free, and the fences of the last work on them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/fence.h"
#include "placement/paged_rows.h"

namespace vitcache {

using Pages = std::vector<std::int64_t>;

// The memory of a tier's pages, and the shape and dtype of its rows.
//
// An entry may have narrow rows: their width divides `row_width`, and `row_width / width` of them lie in the
// space of one full row.
struct TierLayout {
  std::string name;  // "device" or "host"
  bool is_host;
  std::int64_t num_pages;
  std::int64_t page_rows;
  std::int64_t row_width;
  std::int64_t row_bytes;
  std::uint64_t address;
  int kind;
  bool on_cuda;
  // The device that the pages are placed on. -1 matches no device: each placement of these pages is left to
  // Python.
  std::int32_t device_id;
};

// Hits of one tier, the bytes of their rows, and the encode time in milliseconds that they saved.
struct HitCounts {
  std::int64_t hits = 0;
  std::int64_t bytes = 0;
  double saved_ms = 0;
};

// The use of one tier, as `vitcache.CacheStats` counts it.
struct TierUse {
  std::int64_t hits;
  std::int64_t hit_bytes;
  double saved_ms;
  std::int64_t leased_pages;
  std::int64_t used_bytes;
  std::int64_t capacity_bytes;
};

// The pages of one tier. A free page keeps the fences of the last work on it: `allocate` returns them with
// the page, and the caller waits for them before it writes the page.
//
// Thread rule: the owner calls one method at a time. No method touches the memory of the pages or makes a
// CUDA call.
class Tier {
 public:
  // `memory` owns the memory of the pages. Entries and pending writes keep it alive.
  Tier(TierLayout layout, std::shared_ptr<void> memory);

  const TierLayout& layout() const { return layout_; }
  const std::shared_ptr<void>& memory() const { return memory_; }
  // After it, only the entries and pending writes that exist keep the memory alive.
  void forget_memory() { memory_.reset(); }

  std::int64_t page_bytes() const { return layout_.page_rows * layout_.row_bytes; }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_pages_.size()); }
  // Pages that are free or that evictions can free: neither leased nor pending.
  std::int64_t num_available() const { return layout_.num_pages - leased_pages - pending_pages; }
  // Rows of this width in a page. The width must divide the tier's.
  std::int64_t page_rows(std::int64_t row_width) const {
    return layout_.page_rows * (layout_.row_width / row_width);
  }
  // At least one page, which bounds the number of entries.
  std::int64_t pages_for(std::int64_t num_rows, std::int64_t row_width) const;
  std::int64_t pages_for(std::int64_t num_rows) const { return pages_for(num_rows, layout_.row_width); }

  // Allocates `count` free pages, in the order in which they were freed, and adds their fences to `fences`.
  Pages allocate(std::int64_t count, FenceSet& fences);
  // Allocates `count` adjacent pages, ascending, from the shortest run of free pages that is long enough.
  // Returns no page, and changes nothing, if no run is long enough. Takes time in proportion to all pages.
  Pages allocate_run(std::int64_t count, FenceSet& fences);
  // Allocates the free pages among pages [first, last), ascending. Takes time as `allocate_run` does.
  Pages allocate_range(std::int64_t first, std::int64_t last, FenceSet& fences);
  // All work on `pages` is complete once `fences` are complete.
  void free(const Pages& pages, const FenceSet& fences);
  const Pages& free_pages() const { return free_pages_; }

  TierUse use() const;

  PagedRows describe(Pages pages, std::int64_t num_rows, std::int64_t row_width) const;

  std::int64_t leased_pages = 0;   // with at least one lease
  std::int64_t pending_pages = 0;  // of pending writes and copies
  HitCounts hits;

 private:
  void take_fences(const Pages& pages, FenceSet& fences);

  TierLayout layout_;
  std::shared_ptr<void> memory_;
  Pages free_pages_;                                     // the next page to allocate is the last
  std::vector<std::shared_ptr<const FenceSet>> fences_;  // by page; null: no work to wait for
};

}  // namespace vitcache
