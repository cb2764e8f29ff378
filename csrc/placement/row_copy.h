// The row kernels for the CPU: functions that read the same tables and copy rows as bytes.
//
// Each call returns when all rows are written. At most `num_threads` threads work, the calling thread
// included. A call with few bytes uses only the calling thread. Sources and destinations must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vitcache {

// The destination of one level of a row: row `t` begins at `base + t * row_stride`. The first plane is
// inputs_embeds, the other planes are the deepstack levels. A source row contains `row_bytes` bytes for each
// plane, in this order.
struct Plane {
  std::byte* base;
  std::int64_t row_stride;
};

// Token embeddings: row `i` begins at `base + i * row_stride`.
struct Weight {
  const std::byte* base;
  std::int64_t row_stride;
};

// `table` contains (address, token) for each of `num_rows` rows.
void scatter_rows(const std::int64_t* table, std::int64_t num_rows, const std::vector<Plane>& planes,
                  std::int64_t row_bytes, int num_threads);

// `table` contains an address per token, 0 for text. A text token `t` gets row `ids[t]` of `weight`, and
// zeros in the other planes. The caller has checked the ids (`Placement::check_text_ids`).
template <typename Id>
void embed_rows(const std::int64_t* table, std::int64_t num_tokens, const Id* ids, const Weight& weight,
                const std::vector<Plane>& planes, std::int64_t row_bytes, int num_threads);

}  // namespace vitcache
