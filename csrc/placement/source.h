// The rows that a placement reads: one strided block of memory, or pages of a pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/byte_range.h"

namespace vitcache {

// The dtype of rows. One launch reads sources of one kind.
enum Kind : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };
inline constexpr int kNumKinds = 3;
inline constexpr std::int64_t kElementBytes[kNumKinds] = {4, 2, 2};

// `num_rows` rows, `row_stride` bytes apart. Copies of a Source share its list of pages.
struct Source {
  std::uint64_t address;
  std::int64_t row_stride;
  std::int64_t num_rows;
  int kind;
  bool on_host;  // in host memory, which the device reads through the bus
  std::shared_ptr<const std::vector<std::int64_t>> pages;  // null: one strided block
  std::int64_t page_rows;
  std::int64_t first_pool_row;  // the lowest pool row of the pages, for the checks of Placement
  std::int64_t last_pool_row;   // the highest pool row of the pages
  // Whether a row has the columns of inputs_embeds alone: its deepstack levels are zeros.
  bool narrow = false;

  static Source block(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                      bool on_host) {
    return {address, row_stride, num_rows, kind, on_host, nullptr, 0, 0, num_rows > 0 ? num_rows - 1 : -1};
  }

  // Rows in pages of a pool that begins at `address`; a page has `page_rows` rows.
  // Throws std::invalid_argument if the pages have fewer than `num_rows` rows, or if the number of a page or
  // of one of its rows is negative or has more than 64 bits.
  static Source paged(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                      bool on_host, std::vector<std::int64_t> pages, std::int64_t page_rows);

  // The number of row `row` in the pool, or in the block.
  std::int64_t pool_row(std::int64_t row) const {
    return pages == nullptr
               ? row
               : (*pages)[static_cast<std::size_t>(row / page_rows)] * page_rows + row % page_rows;
  }

  // Addresses are sums modulo 2^64: rows without bytes may have any stride.
  std::int64_t row_address(std::int64_t row) const {
    return static_cast<std::int64_t>(address + static_cast<std::uint64_t>(pool_row(row)) *
                                                   static_cast<std::uint64_t>(row_stride));
  }

  // The address of a row in a table. Rows begin at multiples of 2 bytes, so bit 0 can mark a narrow row.
  std::int64_t marked(std::int64_t row_address) const { return row_address | (narrow ? 1 : 0); }

  // The bytes of all rows, or of the pool from the lowest to the highest page, if a row has `row_bytes`
  // bytes. None if a row lies outside of the address space.
  std::optional<ByteRange> range(std::int64_t row_bytes) const;

  // Calls `visit(address, count)` for each part of rows [first, first + length) whose rows are evenly spaced:
  // all rows of a block, or the rows of one page. So writing a table needs no division per row.
  template <typename Visit>
  void visit_parts(std::int64_t first, std::int64_t length, Visit visit) const {
    for (const std::int64_t end = first + length; first < end;) {
      const std::int64_t count =
          pages == nullptr ? end - first : std::min(end - first, page_rows - first % page_rows);
      visit(row_address(first), count);
      first += count;
    }
  }
};

}  // namespace vitcache
