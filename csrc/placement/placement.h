// One placement: which rows of which sources go to which tokens.
//
// Built on the host for a single call, from numbers that the host knows, and used up at once: fill it with
// sources and runs, `check` it, write the table that a kernel reads. No thread rule beyond that of a
// std::vector; no CUDA call.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "placement/source.h"

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

  // All rows of a source, placed or not, are also written to `pages`, which hold as many. Once per source.
  void add_store(std::int64_t item, Source pages);

  std::int64_t num_sources() const { return static_cast<std::int64_t>(sources_.size()); }
  std::int64_t source_rows(std::int64_t item) const {
    return sources_[static_cast<std::size_t>(item)].num_rows;
  }

  // Every run lies inside its source and inside `[0, num_tokens)`. Throws std::out_of_range (tokens) or
  // std::invalid_argument (the rest), naming the item and both numbers.
  void check_runs(std::int64_t num_tokens) const;

  // Two runs that would write a token twice, in the order of their tokens.
  std::optional<std::pair<Run, Run>> find_overlap() const;

  // There are none. Throws std::invalid_argument naming both.
  void check_overlap() const;

  // The ids of tokens outside the runs are rows of a weight that has `num_rows`. Throws std::out_of_range
  // naming the first that is none.
  template <typename Id>
  void check_text_ids(const Id* ids, std::int64_t num_tokens, std::int64_t num_rows) const;

  // No source, and no page that is written, lies in the rows of a destination, `row_bytes` every `row_stride`
  // bytes of [begin, end): a copy from there would read what it has just written. A source may lie between
  // them if its rows are as far apart. Its rows have `width` elements. Throws std::invalid_argument naming
  // the item.
  void check_apart(std::uint64_t begin, std::uint64_t end, std::int64_t row_stride, std::int64_t row_bytes,
                   std::int64_t width) const;

  // No source of `width` elements a row lies in a page that is written. Throws std::invalid_argument naming
  // both items.
  void check_stores_apart(std::int64_t width) const;

  // Call it once the rows of stored sources were written to their pages: they are read from there from now
  // on, and are not stored again.
  void read_stores();

  // Takes out of the runs what a copy engine moves better than a kernel: blocks of at least `min_bytes` of
  // host sources of `kind` that are not stored, with rows of `row_bytes` bytes. The tables leave their tokens
  // to somebody else from then on. Once.
  const std::vector<BlockCopy>& take_host_blocks(int kind, std::int64_t row_bytes, std::int64_t min_bytes);

  const std::vector<Run>& runs() const { return runs_; }

  // Rows that the sources of `kind` place.
  std::int64_t num_rows(int kind) const;

  // Whether a source of `kind` is stored, and how many rows of it no run places.
  bool stores(int kind) const;
  std::int64_t num_unplaced_rows(int kind) const;

  // Whether any source is read through the bus.
  bool reads_host() const;

  // Whether every row of `kind`, and every page that it is stored in, begins at a multiple of 16 bytes.
  bool aligned(int kind) const;

  // Writes (address, token) for each placed row of `kind`: 2 * num_rows(kind) values, each row once.
  void write_row_table(int kind, std::int64_t* table) const;

  // Writes one value per token: the address of its row, 0 where no run goes (text), kOtherKind where a source
  // of another kind goes.
  void write_token_table(int kind, std::int64_t* table, std::int64_t num_tokens) const;

  // Of the pages of a row: it has none, or another place in the table names them.
  static constexpr std::int64_t kNoPage = 0;
  static constexpr std::int64_t kStoredElsewhere = -1;
  // Of the token of a row that is stored alone.
  static constexpr std::int64_t kNoToken = -1;

  // The same for rows that are stored, too. (address, token, page) for each placed row of `kind`, then for
  // each one that is stored alone: 3 * (num_rows(kind) + num_unplaced_rows(kind)) values.
  void write_stored_row_table(int kind, std::int64_t* table) const;

  // (address, page) for each token, then for each row of `kind` that is stored alone:
  // 2 * (num_tokens + num_unplaced_rows(kind)) values.
  void write_stored_token_table(int kind, std::int64_t* table, std::int64_t num_tokens) const;

 private:
  // A row of a source that is stored, with the run's token.
  struct StoredRow {
    std::int64_t address;
    std::int64_t token;
    std::int64_t page;
  };

  const Source& source_of(const Run& run) const { return sources_[static_cast<std::size_t>(run.item)]; }
  bool is_stored(std::int64_t item) const { return stores_.count(item) != 0; }
  void check_tokens(std::int64_t num_tokens) const;

  // Those that are not empty, by their first token.
  std::vector<const Run*> runs_in_order() const;

  // Calls `visit` with each placed row of `kind`, then with those that are stored alone; each row of a stored
  // source comes with its page once.
  template <typename Visit>
  void visit_stored(int kind, Visit visit) const;

  std::vector<Source> sources_;
  std::map<std::int64_t, Source> stores_;  // by item
  std::vector<Run> runs_;
  std::vector<BlockCopy> blocks_;
};

}  // namespace vitcache
