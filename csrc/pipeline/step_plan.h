// The plan of one step: the unique items that its chunks need, and the runs of rows that they place.
//
// Thread rule: as for a std::vector, concurrent calls may only read. Python calls every method under the GIL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "cache/key.h"
#include "pipeline/item_arrays.h"
#include "pipeline/window.h"
#include "placement/placement.h"

namespace vitcache {

// One item of the step. Equal items of several requests are one planned item.
struct PlannedItem {
  Key key;  // all 0 without a key
  bool has_key;
  bool has_rows;  // its rows are precomputed: it has no key
  bool fits;      // its rows have a width that the step accepts; else it has no key
  std::int64_t num_rows;
  std::int64_t row_width;
  std::int64_t needed_rows;  // the largest `source_start + length` of its runs
};

// An item that overlaps a chunk: the item is at `position` in the items of window `chunk`.
struct Occurrence {
  std::int64_t chunk;
  std::int64_t position;
};

// The widths of rows that a step accepts.
struct AcceptedWidths {
  std::int64_t row_width = 0;  // of the cache, and of items that name no width; 0: any width is accepted
  std::int64_t hidden = 0;     // of the destination; 0: without a destination, every divisor is accepted

  bool accept(std::int64_t width) const {
    if (row_width == 0 || width == row_width) return true;
    return row_width % width == 0 && (hidden == 0 || width == hidden);
  }
};

class StepPlan {
 public:
  // Plans without a batch: `token_offset` is not read, and runs count tokens from the start of their window.
  static constexpr std::int64_t kNoBatch = -1;

  // Plans the windows of a batch of `num_tokens` tokens. Computed keys are used if they are valid in
  // `key_namespace`. The plan does not refer to the windows afterwards. Throws std::out_of_range if a chunk
  // ends after the last token, and std::invalid_argument if two chunks share a token of the batch, or two
  // spans a token of their chunk.
  StepPlan(const std::vector<Window>& windows, std::string_view key_namespace, std::int64_t num_tokens,
           const AcceptedWidths& widths = {});

  // The token of the prompt at which a window ends.
  std::int64_t stop(std::int64_t chunk) const { return stops_[static_cast<std::size_t>(chunk)]; }
  std::size_t num_chunks() const { return stops_.size(); }

  const AcceptedWidths& widths() const { return widths_; }

  // The items in the order in which the step needs them: by chunk, then by their first token in it.
  const std::vector<PlannedItem>& items() const { return items_; }

  // The runs by chunk, then by token. Run::item is an index into `items()`.
  const std::vector<Run>& runs() const { return runs_; }

  // The items that have neither a key nor rows, and fit. One object is one item; equal objects are separate
  // items until `merge`.
  std::vector<std::int64_t> unkeyed() const;

  // The items that have precomputed rows.
  std::vector<std::int64_t> given() const;

  // Sets the key of an item of `unkeyed()`.
  void set_key(std::int64_t item, const Key& key);

  // Merges the items that became equal through `set_key`. Returns the new index of each item; empty if no
  // items were equal.
  std::vector<std::int64_t> merge();

  // Items that failed: their runs read rows from 0 on. So a source of zeros needs no more rows than the
  // longest run has tokens, whatever `source_start` a caller gave.
  void read_from_start(const std::vector<std::int64_t>& items);

  // The first occurrence of an item, and all: by object, then in the order of the batch.
  Occurrence occurrence(std::int64_t item) const;
  std::vector<Occurrence> occurrences(std::int64_t item) const;

  // The first occurrence of each further object that is equal to the first object of an item.
  std::vector<Occurrence> duplicates(std::int64_t item) const;

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  // An element of the list of the occurrences of one object.
  struct LinkedOccurrence {
    Occurrence place;
    std::size_t next;
  };

  // One caller's object: an element of the list of the objects of one item, in the order of the step.
  struct Object {
    std::uintptr_t identity;
    std::size_t item;
    std::size_t first_occurrence;
    std::size_t last_occurrence;
    std::size_t next;
  };

  struct ObjectList {
    std::size_t first;
    std::size_t last;
  };

  class Builder;

  // Adds the objects of `from` to those of `into`. Both lists are ascending, and the result is, too.
  void join(ObjectList& into, const ObjectList& from);

  const ObjectList& objects_of(std::int64_t item) const {
    return objects_of_[static_cast<std::size_t>(item)];
  }

  AcceptedWidths widths_;
  std::vector<std::int64_t> stops_;  // by chunk
  std::vector<PlannedItem> items_;
  std::vector<ObjectList> objects_of_;  // by item
  std::vector<Object> objects_;
  std::vector<LinkedOccurrence> occurrences_;
  std::vector<Run> runs_;
};

}  // namespace vitcache
