// One placement: which rows of which sources go to which tokens.
//
// Built on the host for a single call, from numbers that the host knows, and used up at once: fill it with
// sources and runs, `check` it, write the table that a kernel reads. No thread rule beyond that of a
// std::vector; no CUDA call.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "source.h"

namespace vitcache {

// Rows `[source_start, source_start + length)` of source `item` go to tokens `[start, start + length)`.
struct Run {
  std::int64_t item;
  std::int64_t start;
  std::int64_t length;
  std::int64_t source_start;
};

// `num_rows` rows from `source_row` of source `item`, which are one block in memory, go to tokens from
// `token` on. In a paged source rows are counted in its pool.
struct BlockCopy {
  std::int64_t item;
  std::int64_t source_row;
  std::int64_t token;
  std::int64_t num_rows;
};

class Placement {
 public:
  // Marks, in a token table, a token that another launch or copy writes.
  static constexpr std::int64_t kOtherKind = -1;

  // Sources are numbered in the order in which they are added.
  void add_source(Source source) { sources_.push_back(std::move(source)); }

  void add_run(Run run) { runs_.push_back(run); }

  std::int64_t num_sources() const { return static_cast<std::int64_t>(sources_.size()); }
  std::int64_t source_rows(std::int64_t item) const {
    return sources_[static_cast<std::size_t>(item)].num_rows;
  }

  // Every run lies inside its source and inside `[0, num_tokens)`, and no token is written twice.
  // Throws IndexError (tokens) or std::invalid_argument (the rest), naming the item and both numbers.
  void check(std::int64_t num_tokens) const;

  // No source lies in the rows of a destination, `row_bytes` every `row_stride` bytes of [begin, end): a copy
  // from there would read what it has just written. A source may lie between them if its rows are as far
  // apart. Its rows have `width` elements. Throws std::invalid_argument naming the item.
  void check_apart(std::uint64_t begin, std::uint64_t end, std::int64_t row_stride, std::int64_t row_bytes,
                   std::int64_t width) const;

  // Takes out of the runs what a copy engine moves better than a kernel: blocks of at least `min_bytes` of
  // host sources of `kind`, with rows of `row_bytes` bytes. The tables leave their tokens to somebody else
  // from then on. Once.
  const std::vector<BlockCopy>& take_host_blocks(int kind, std::int64_t row_bytes, std::int64_t min_bytes);

  const std::vector<Run>& runs() const { return runs_; }

  // Rows that the sources of `kind` place.
  std::int64_t num_rows(int kind) const;

  // Whether any source is read through the bus.
  bool reads_host() const;

  // Whether every row of `kind` begins at a multiple of 16 bytes.
  bool aligned(int kind) const;

  // Writes (address, token) for each placed row of `kind`: 2 * num_rows(kind) values, each row once.
  void write_row_table(int kind, std::int64_t* table) const;

  // Writes one value per token: the address of its row, 0 where no run goes (text), kOtherKind where a source
  // of another kind goes.
  void write_token_table(int kind, std::int64_t* table, std::int64_t num_tokens) const;

 private:
  const Source& source_of(const Run& run) const { return sources_[static_cast<std::size_t>(run.item)]; }

  std::vector<Source> sources_;
  std::vector<Run> runs_;
  std::vector<BlockCopy> blocks_;
};

}  // namespace vitcache
