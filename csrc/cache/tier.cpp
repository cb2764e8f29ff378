#include "cache/tier.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

namespace vitcache {

Tier::Tier(TierLayout layout, std::shared_ptr<void> memory)
    : layout_(std::move(layout)), memory_(std::move(memory)) {
  const auto num_pages = static_cast<std::size_t>(layout_.num_pages);
  free_pages_.resize(num_pages);
  for (std::size_t i = 0; i < num_pages; ++i) free_pages_[i] = static_cast<std::int64_t>(num_pages - 1 - i);
  fences_.resize(num_pages);
}

std::int64_t Tier::pages_for(std::int64_t num_rows, std::int64_t row_width) const {
  const std::int64_t rows = page_rows(row_width);
  const std::int64_t pages = num_rows / rows + (num_rows % rows != 0);
  return std::max<std::int64_t>(1, pages);
}

Pages Tier::allocate(std::int64_t count, FenceSet& fences) {
  Pages pages(free_pages_.rbegin(), free_pages_.rbegin() + count);
  free_pages_.resize(free_pages_.size() - static_cast<std::size_t>(count));
  take_fences(pages, fences);
  return pages;
}

Pages Tier::allocate_run(std::int64_t count, FenceSet& fences) {
  std::vector<bool> is_free(static_cast<std::size_t>(layout_.num_pages));
  for (const std::int64_t page : free_pages_) is_free[static_cast<std::size_t>(page)] = true;
  std::int64_t best = -1, best_length = 0, length = 0;
  for (std::int64_t page = 0; page <= layout_.num_pages; ++page) {
    if (page < layout_.num_pages && is_free[static_cast<std::size_t>(page)]) {
      ++length;
      continue;
    }
    if (length >= count && (best < 0 || length < best_length)) {
      best = page - length;
      best_length = length;
    }
    length = 0;
  }
  return best < 0 ? Pages{} : allocate_range(best, best + count, fences);
}

Pages Tier::allocate_range(std::int64_t first, std::int64_t last, FenceSet& fences) {
  const auto is_taken = [=](std::int64_t page) { return page >= first && page < last; };
  Pages pages;
  std::copy_if(free_pages_.begin(), free_pages_.end(), std::back_inserter(pages), is_taken);
  free_pages_.erase(std::remove_if(free_pages_.begin(), free_pages_.end(), is_taken), free_pages_.end());
  std::sort(pages.begin(), pages.end());
  take_fences(pages, fences);
  return pages;
}

// Adds the fences of pages that were free to `fences`, and forgets them.
void Tier::take_fences(const Pages& pages, FenceSet& fences) {
  for (const std::int64_t page : pages) {
    auto& kept = fences_[static_cast<std::size_t>(page)];
    if (kept == nullptr) continue;
    fences.add_all(*kept);
    kept.reset();
  }
}

void Tier::free(const Pages& pages, const FenceSet& fences) {
  free_pages_.insert(free_pages_.end(), pages.rbegin(), pages.rend());
  if (fences.empty()) return;
  const auto kept = std::make_shared<const FenceSet>(fences);
  for (const std::int64_t page : pages) fences_[static_cast<std::size_t>(page)] = kept;
}

TierUse Tier::use() const {
  return {hits.hits,
          hits.bytes,
          hits.saved_ms,
          leased_pages,
          (layout_.num_pages - num_free()) * page_bytes(),
          layout_.num_pages * page_bytes()};
}

PagedRows Tier::describe(Pages pages, std::int64_t num_rows, std::int64_t row_width) const {
  const std::int64_t row_bytes = layout_.row_bytes / layout_.row_width * row_width;
  return PagedRows::make(layout_.address, row_bytes, num_rows, layout_.kind, std::move(pages),
                         page_rows(row_width), row_width, layout_.on_cuda, layout_.device_id);
}

}  // namespace vitcache
