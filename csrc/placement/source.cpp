#include "placement/source.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace vitcache {

Source Source::paged(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                     bool on_host, std::vector<std::int64_t> pages, std::int64_t page_rows) {
  const auto num_pages = static_cast<std::int64_t>(pages.size());
  if (page_rows <= 0 || num_rows < 0 || num_rows / page_rows + (num_rows % page_rows > 0 ? 1 : 0) > num_pages)
    throw std::invalid_argument("expected pages for " + std::to_string(num_rows) + " rows, got " +
                                std::to_string(pages.size()) + " pages of " + std::to_string(page_rows) +
                                " rows");
  const auto [low, high] = std::minmax_element(pages.begin(), pages.end());
  if (!pages.empty() && (*low < 0 || *high >= INT64_MAX / page_rows))
    throw std::invalid_argument("page " + std::to_string(*low < 0 ? *low : *high) + " of " +
                                std::to_string(page_rows) + " rows is not in a pool");
  const std::int64_t first = pages.empty() ? 0 : *low * page_rows;
  const std::int64_t last = pages.empty() ? -1 : (*high + 1) * page_rows - 1;
  auto shared = std::make_shared<const std::vector<std::int64_t>>(std::move(pages));
  return {address, row_stride, num_rows, kind, on_host, std::move(shared), page_rows, first, last};
}

std::optional<ByteRange> Source::range(std::int64_t row_bytes) const {
  if (num_rows == 0) return ByteRange{address, address};
  std::int64_t distance = 0;
  std::uint64_t first = 0;
  if (num_rows < 0 || __builtin_mul_overflow(first_pool_row, row_stride, &distance) ||
      __builtin_add_overflow(address, distance, &first))
    return std::nullopt;
  return rows_range(first, row_stride, last_pool_row - first_pool_row + 1, row_bytes);
}

}  // namespace vitcache
