// The memory that a placement writes on the CPU, and the text tokens of a call of `embed_tokens`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "placement/source.h"
#include "runtime/byte_range.h"

namespace vitcache {

// The destination of one level of a row: row `t` begins at `base + t * row_stride`. The first plane is
// inputs_embeds, the other planes are the deepstack levels.
struct Plane {
  std::byte* base;
  std::int64_t row_stride;
};

// A destination of `num_tokens` rows. A source row has `width` elements: `row_bytes` bytes for each plane, in
// the order of the planes. A destination without planes has no memory: placements can only be checked against
// it. `device_id` is the number of the CUDA device.
//
// Deepstack levels have a row per token. If they are packed, they have a row per placed token, in the order
// of the tokens: `num_packed` rows.
struct Destination {
  std::vector<Plane> planes;
  std::int64_t num_tokens;
  std::int64_t row_bytes;
  std::int64_t width;
  int kind;
  bool on_cuda;
  std::int32_t device_id;
  static constexpr std::int64_t kNotPacked = -1;
  std::int64_t num_packed = kNotPacked;

  // Writes (address, row stride in elements) for each deepstack level.
  void write_level_table(std::int64_t* table) const {
    for (std::size_t level = 1; level < planes.size(); ++level) {
      *table++ = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(planes[level].base));
      *table++ = planes[level].row_stride / kElementBytes[kind];
    }
  }

  bool is_packed() const { return num_packed != kNotPacked; }

  std::int64_t hidden() const { return row_bytes / kElementBytes[kind]; }

  // The bytes of plane `index`. Throws std::invalid_argument if a row lies outside of the address space.
  ByteRange range(std::size_t index) const {
    const Plane& plane = planes[index];
    const auto found = rows_range(reinterpret_cast<std::uintptr_t>(plane.base), plane.row_stride,
                                  index > 0 && is_packed() ? num_packed : num_tokens, row_bytes);
    if (!found) throw std::invalid_argument("the destination's rows lie outside of the address space");
    return *found;
  }

  // The address of the first byte of plane `index`, and the address after its last byte.
  std::pair<std::uint64_t, std::uint64_t> extent(std::size_t index) const {
    const ByteRange bytes = range(index);
    return bytes.empty() ? std::pair<std::uint64_t, std::uint64_t>{0, 0} : std::pair(bytes.begin, bytes.end);
  }
};

// The ids of all tokens, and the rows of the token embedding: row `i` begins at `weight + i * row_stride`.
struct TextTokens {
  const void* ids;
  int id_bytes;  // 4 or 8: the ids are int32 or int64
  const std::byte* weight;
  std::int64_t row_stride;
  std::int64_t num_embeddings;
  int kind;

  // Calls `visit` with the ids as a pointer to their type.
  template <typename Visit>
  void visit_ids(Visit visit) const {
    if (id_bytes == 4)
      visit(static_cast<const std::int32_t*>(ids));
    else
      visit(static_cast<const std::int64_t*>(ids));
  }
};

}  // namespace vitcache
