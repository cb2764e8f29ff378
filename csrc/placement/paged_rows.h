// Rows in pages, with the width and the device of their destination.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "placement/source.h"

namespace vitcache {

// The rows of a cache entry or of a reservation, with the width and the device that their destination must
// have.
struct PagedRows {
  Source source;
  std::int64_t width;
  bool on_cuda;
  std::int32_t device_id;

  static PagedRows make(std::uint64_t address, std::int64_t row_stride, std::int64_t num_rows, int kind,
                        std::vector<std::int64_t> pages, std::int64_t page_rows, std::int64_t width,
                        bool on_cuda, std::int32_t device_id) {
    return {Source::paged(address, row_stride, num_rows, kind, false, std::move(pages), page_rows), width,
            on_cuda, device_id};
  }
};

}  // namespace vitcache
