// One placement: which source rows are written to which tokens.
//
// A placement is built on the host for a single call, from numbers that the host knows. Add sources and runs,
// call the `check_` methods, then write the table that a kernel reads. No method makes a CUDA call. Thread
// rule: as for a std::vector, concurrent calls may only read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "placement/destination.h"
#include "placement/source.h"

namespace vitcache {

// Rows `[source_start, source_start + length)` of source `item` are written to tokens `[start, start +
// length)`.
struct Run {
  std::int64_t item;
  std::int64_t start;
  std::int64_t length;
  std::int64_t source_start;
};

// `num_rows` rows of source `item`, contiguous in memory and beginning with row `source_row`, are written to
// adjacent tokens, beginning with `token`. In a paged source, `source_row` is a row of the pool. `rank` is
// the number of placed tokens before `token`, if the deepstack levels are packed.
struct BlockCopy {
  std::int64_t item;
  std::int64_t source_row;
  std::int64_t token;
  std::int64_t num_rows;
  std::int64_t rank;
};

// The smallest copies that a copy engine makes faster than a kernel reads the same bytes, in bytes.
struct CopyThresholds {
  std::int64_t block;      // of a copy of adjacent rows to adjacent rows
  std::int64_t rows;       // of a two-dimensional copy: rows with a distance, or one plane of several
  std::int64_t row_width;  // of a row of a two-dimensional copy
};

class Placement {
 public:
  // In a token table, the value of a token that another launch or copy writes.
  static constexpr std::int64_t kOtherKind = -1;

  // If `accepts_narrow`, `fit_source` also takes rows that have the columns of inputs_embeds alone.
  explicit Placement(bool accepts_narrow = false) : accepts_narrow_(accepts_narrow) {}

  bool accepts_narrow() const { return accepts_narrow_; }
  void accept_narrow() { accepts_narrow_ = true; }
  // The rows of source `item`, which is set, have the columns of inputs_embeds alone. Throws
  // std::out_of_range if the placement does not have the item.
  void mark_narrow(std::int64_t item) { sources_.at(static_cast<std::size_t>(item)).narrow = true; }

  // Sources are numbered in the order in which they are added.
  void add_source(Source source) { sources_.push_back(std::move(source)); }

  // Sets source `item`, or adds it behind the last source. Sources that are not set yet have no rows. Throws
  // std::out_of_range if `item` is negative.
  void set_source(std::int64_t item, Source source);

  // Sets source `item` if rows of `width` elements can be written to `destination`, and returns whether they
  // can.
  bool fit_source(std::int64_t item, Source source, std::int64_t width, const Destination& destination);

  // Adds sources without rows up to `num_sources`, so that sources can be set in any order.
  void resize_sources(std::int64_t num_sources);

  void add_run(Run run) { runs_.push_back(run); }

  void set_runs(std::vector<Run> runs) { runs_ = std::move(runs); }

  // Stores source `item`: all of its rows, placed or not, are also written to `pages`. Call it at most once
  // per source. The width of the pages is that of the source. Throws std::invalid_argument if `pages` and the
  // source differ in the number of rows, and std::out_of_range if the placement does not have the item.
  void add_store(std::int64_t item, Source pages);

  std::int64_t num_sources() const { return static_cast<std::int64_t>(sources_.size()); }
  std::int64_t source_rows(std::int64_t item) const {
    return sources_.at(static_cast<std::size_t>(item)).num_rows;
  }

  // Makes every check that a placement needs before it is written to `destination`: `check_runs`,
  // `check_apart` for each plane, and, unless the caller has called it, `check_overlap`. Throws
  // std::invalid_argument if a row of a source or of a page lies outside of the address space, or if packed
  // deepstack levels do not have one row per placed token.
  void check(const Destination& destination, bool is_overlap_checked) const;

  // Checks that every run lies inside of its source and inside of `[0, num_tokens)`. Throws std::out_of_range
  // (tokens) or std::invalid_argument (items and rows). The message names the item and both numbers.
  void check_runs(std::int64_t num_tokens) const;

  // Two runs that write the same token, in the order of their tokens; none if no runs overlap.
  std::optional<std::pair<Run, Run>> find_overlap() const;

  // Throws std::invalid_argument, naming both runs, if two runs overlap. Call `check_runs` first.
  void check_overlap() const;

  // Checks that the id of every token outside of the runs is in `[0, num_rows)`, the rows of the weight.
  // Throws std::out_of_range naming the first token whose id is outside this range.
  template <typename Id>
  void check_text_ids(const Id* ids, std::int64_t num_tokens, std::int64_t num_rows) const;

  void check_text_ids(const TextTokens& text, std::int64_t num_tokens) const;

  // Checks that no source, and no page that a source is stored in, shares memory with the rows of a
  // destination: `row_bytes` bytes at every `row_stride` bytes of [begin, end). If they shared memory, the
  // placement could read bytes that it has just written. A source with the same row stride may lie between
  // the destination's rows. `width` is the number of elements of a source row, and `narrow_width` that of a
  // narrow source's row. Throws std::invalid_argument naming the item.
  void check_apart(std::uint64_t begin, std::uint64_t end, std::int64_t row_stride, std::int64_t row_bytes,
                   std::int64_t width, std::int64_t narrow_width) const;

  // Checks that no source shares memory with a page that a source is stored in. The arguments are those of
  // `check_apart`. Throws std::invalid_argument naming both items.
  void check_stores_apart(std::int64_t width, std::int64_t narrow_width) const;

  // Call it after the rows of stored sources were written to their pages. These sources are then read from
  // the pages, and are not stored again.
  void read_stores();

  // Removes from the runs, and returns, the blocks that a copy engine copies faster than a kernel: rows of
  // host sources of the destination's kind that are not stored and not narrow. In token tables their tokens
  // become kOtherKind. Call it at most once.
  const std::vector<BlockCopy>& take_host_blocks(const Destination& destination,
                                                 const CopyThresholds& thresholds);

  const std::vector<Run>& runs() const { return runs_; }
  const std::vector<Source>& sources() const { return sources_; }

  // The runs that are not empty, in the order of their first tokens. Valid until the runs change.
  std::vector<const Run*> runs_in_order() const;

  // For each run, the number of placed tokens before its first token, blocks that were taken included; 0 for
  // an empty run.
  std::vector<std::int64_t> first_ranks() const;

  // Number of placed rows of all sources.
  std::int64_t num_placed() const;

  // Number of placed rows of sources of `kind`.
  std::int64_t num_rows(int kind) const;

  // Whether all placed rows are of `kind`.
  bool places_only(int kind) const;

  bool has_stores() const { return !stores_.empty(); }

  // Whether a source of `kind` is stored, and the number of rows of such sources that no run places.
  bool stores(int kind) const;
  std::int64_t num_unplaced_rows(int kind) const;

  // Whether the device reads any source through the bus.
  bool reads_host() const;

  // Whether a launch for `kind` reads a narrow source.
  bool has_narrow(int kind) const;

  // Whether every row of `kind`, and every row of the pages that it is stored in, begins at a multiple of 16
  // bytes.
  bool aligned(int kind) const;

  // The addresses of rows in tables are `Source::marked`. If a table `has_ranks`, each row has one more value
  // behind the values below: the number of placed tokens before its token, which is its row in packed
  // deepstack levels. The rank of a row that is not placed is 0.

  // Writes (address, token) for each placed row of `kind`: 2 * num_rows(kind) values.
  void write_row_table(int kind, std::int64_t* table, bool has_ranks = false) const;

  // Writes one value per token: the address of its row; 0 if no run writes the token (text); kOtherKind if a
  // source of another kind or a copy of a block writes it.
  void write_token_table(int kind, std::int64_t* table, std::int64_t num_tokens,
                         bool has_ranks = false) const;

  // Values in place of a row's page. kNoPage: the row is not stored. kStoredElsewhere: another descriptor of
  // the same row stores it.
  static constexpr std::int64_t kNoPage = 0;
  static constexpr std::int64_t kStoredElsewhere = -1;
  // The value in place of the token of a row that is stored and not placed.
  static constexpr std::int64_t kNoToken = -1;

  // The row table with pages: writes (address, token, page) for each placed row of `kind`, then for each row
  // that is stored and not placed: 3 * (num_rows(kind) + num_unplaced_rows(kind)) values.
  void write_stored_row_table(int kind, std::int64_t* table, bool has_ranks = false) const;

  // The token table with pages: writes (address, page) for each token, then for each row of `kind` that is
  // stored and not placed: 2 * (num_tokens + num_unplaced_rows(kind)) values.
  void write_stored_token_table(int kind, std::int64_t* table, std::int64_t num_tokens,
                                bool has_ranks = false) const;

 private:
  // A row that `visit_stored` visits, with its token, the address of its page row and its rank.
  struct StoredRow {
    std::int64_t address;
    std::int64_t token;
    std::int64_t page;
    std::int64_t rank;
  };

  const Source& source_of(const Run& run) const { return sources_[static_cast<std::size_t>(run.item)]; }
  bool is_stored(std::int64_t item) const { return stores_.count(item) != 0; }
  void check_addresses(std::int64_t width, std::int64_t narrow_width) const;
  void check_tokens(std::int64_t num_tokens) const;

  template <bool kHasRanks>
  void write_rows(int kind, std::int64_t* table) const;
  template <bool kHasRanks>
  void write_tokens(int kind, std::int64_t* table, std::int64_t num_tokens) const;

  // Calls `visit` with each placed row of `kind`, then with each row that is stored and not placed. The page
  // of a stored row is passed exactly once. Unless `has_ranks`, ranks are 0.
  template <typename Visit>
  void visit_stored(int kind, bool has_ranks, Visit visit) const;

  bool accepts_narrow_;

  std::vector<Source> sources_;
  std::map<std::int64_t, Source> stores_;  // by item
  std::vector<Run> runs_;
  std::vector<BlockCopy> blocks_;
  std::vector<std::int64_t> taken_ranks_;  // `first_ranks` of the runs that `take_host_blocks` left
};

}  // namespace vitcache
