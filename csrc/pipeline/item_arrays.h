// The items of one request as arrays: the fields that a step reads, without the Python objects.
//
// Thread rule: as for a std::vector, concurrent calls may only read. Python calls every method under the GIL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/key.h"

namespace vitcache {

// Starts and lengths are at most this number, so that sums of a few of them cannot overflow.
inline constexpr std::int64_t kLargestToken = std::int64_t{1} << 60;

// Rows `[source_start, source_start + length)` of the item at `position` are written to tokens `[start, start
// + length)` of the prompt. `number` is the index of the span among all spans of its item.
struct ItemSpan {
  std::int64_t start;
  std::int64_t position;
  std::int64_t length;
  std::int64_t source_start;
  std::int64_t number;

  std::int64_t stop() const { return start + length; }
};

// The fields of an item apart from its spans.
struct ItemFields {
  std::uintptr_t identity;  // two occurrences of one object are one item, even without a key
  std::int64_t num_rows;
  bool has_rows;                    // its rows are precomputed, so that it needs no key
  std::optional<Key> key;           // the key that the caller gave
  std::optional<Key> computed_key;  // a key that a pipeline computed
  std::size_t computed_in;          // the namespace of `computed_key`, as ItemArrays numbers it
};

class ItemArrays {
 public:
  void reserve(std::size_t num_items) {
    items_.reserve(num_items);
    spans_.reserve(num_items);
  }

  // Items are numbered in the order in which they are added.
  void add_item(const ItemFields& item) { items_.push_back(item); }

  // Adds a span of the last item. A span of length 0 covers no token and is left out. Throws
  // std::out_of_range, naming the item, if a number is larger than kLargestToken.
  void add_span(std::int64_t start, std::int64_t length, std::int64_t source_start, std::int64_t number);

  // Call it once, after the last item and before any of the methods below.
  void sort_spans();

  std::size_t size() const { return items_.size(); }
  const ItemFields& item(std::int64_t position) const { return items_[static_cast<std::size_t>(position)]; }

  // The spans of all items, in the order of their starts, then of their items.
  const std::vector<ItemSpan>& spans() const { return spans_; }

  // Bounds in `spans()` of the spans that may overlap tokens `[start, stop)`. A span between the bounds
  // overlaps them if its stop is after `start`.
  std::pair<std::size_t, std::size_t> find_spans(std::int64_t start, std::int64_t stop) const;

  // Stores the key that was computed for an item in a namespace. An item stores one computed key.
  void set_computed(std::int64_t position, std::string_view key_namespace, const Key& key);

  // The number of a namespace. A computed key is valid only in its own namespace.
  std::size_t find_namespace(std::string_view key_namespace) const;

 private:
  std::vector<ItemFields> items_;
  std::vector<ItemSpan> spans_;
  std::vector<std::int64_t> furthest_;   // for each span, the largest stop up to this span: ascending
  std::vector<std::string> namespaces_;  // of the computed keys: as a rule, of one pipeline
};

}  // namespace vitcache
