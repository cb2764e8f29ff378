// The row kernels' work on the CPU: the same tables, rows moved as bytes.
//
// Each call returns when all is written. The calling thread works too; `num_threads` is the most that work at
// once, and a call that moves little stays on its own thread. Sources and destinations must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vitcache {

// Where one level of a row goes: row `t` begins at `base + t * row_stride`. The first plane is inputs_embeds,
// the others are the deepstack levels; a source row holds `row_bytes` bytes for each, one after the other.
struct Plane {
  std::byte* base;
  std::int64_t row_stride;
};

// Token embeddings: row `i` begins at `base + i * row_stride`.
struct Weight {
  const std::byte* base;
  std::int64_t row_stride;
};

// `table` holds (address, token) for each of `num_rows` rows.
void scatter_rows(const std::int64_t* table, std::int64_t num_rows, const std::vector<Plane>& planes,
                  std::int64_t row_bytes, int num_threads);

// `table` holds an address per token, 0 for text: those tokens get row `ids[t]` of `weight`, and zeros in
// further planes. Their ids are rows of `weight`: `Placement::check_text_ids` has looked.
template <typename Id>
void embed_rows(const std::int64_t* table, std::int64_t num_tokens, const Id* ids, const Weight& weight,
                const std::vector<Plane>& planes, std::int64_t row_bytes, int num_threads);

}  // namespace vitcache
