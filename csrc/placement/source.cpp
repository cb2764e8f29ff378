#include "placement/source.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace vitcache {

Source Source::paged(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                     bool on_host, std::vector<std::int64_t> pages, std::int64_t page_rows) {
  if (page_rows <= 0 || static_cast<std::int64_t>(pages.size()) * page_rows < num_rows)
    throw std::invalid_argument("expected pages for " + std::to_string(num_rows) + " rows, got " +
                                std::to_string(pages.size()) + " pages of " + std::to_string(page_rows) +
                                " rows");
  const auto [low, high] = std::minmax_element(pages.begin(), pages.end());
  const std::int64_t first = pages.empty() ? 0 : *low * page_rows;
  const std::int64_t last = pages.empty() ? -1 : (*high + 1) * page_rows - 1;
  auto shared = std::make_shared<const std::vector<std::int64_t>>(std::move(pages));
  return {address, row_stride, num_rows, kind, on_host, std::move(shared), page_rows, first, last};
}

}  // namespace vitcache
