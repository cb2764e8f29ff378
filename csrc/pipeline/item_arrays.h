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
  std::int64_t row_width;  // elements of a row; 0: those of the cache's rows
  bool has_rows;           // its rows are precomputed, so that it needs no key
  bool is_key_complete;    // `key` is used as it is in every namespace
  bool has_tenant;         // its key may name a tenant, too: it is computed in every namespace
  std::optional<Key> key;  // the key that the caller gave

  // Whether the pipeline computes the key of a namespace from `key`. An empty namespace changes only the key
  // of an item with a tenant.
  bool is_folded(bool has_namespace = true) const {
    return key.has_value() && !is_key_complete && !has_rows && (has_namespace || has_tenant);
  }
};

class ItemArrays {
 public:
  void reserve(std::size_t num_items) {
    items_.reserve(num_items);
    spans_.reserve(num_items);
  }

  // Items are numbered in the order in which they are added.
  void add_item(const ItemFields& item) {
    items_.push_back(item);
    if (item.is_folded()) ++num_to_fold_;
    if (item.is_folded(false)) ++num_with_tenant_;
  }

  // Adds a span of the last item. A span of length 0 covers no token and is left out. Throws
  // std::invalid_argument, naming the item, if a number is negative, and std::out_of_range if `start` or
  // `length` is larger than kLargestToken. A larger `source_start` is entered as kLargestToken.
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

  // Stores the key that was computed for an item in a namespace: the hash of its content, or its given key
  // with the namespace folded in. An item stores one computed key per namespace.
  void set_computed(std::int64_t position, std::string_view key_namespace, const Key& key);

  // The items whose given keys are not folded yet, and these keys, in a namespace.
  std::vector<std::pair<std::int64_t, Key>> unfolded(std::string_view key_namespace) const;
  bool has_unfolded(std::string_view key_namespace) const;

  // The keys of the items in a namespace. Valid until `set_computed`.
  class Keys;
  Keys keys_in(std::string_view key_namespace) const;

  // The end of the last span of all items that equal the item at `position` in a namespace.
  std::int64_t last_stop(std::int64_t position, std::string_view key_namespace) const;

 private:
  // The computed keys of one namespace.
  struct Computed {
    std::string key_namespace;
    std::vector<std::optional<Key>> keys;  // by position, up to the last item that was added before
    std::size_t num_folded;                // keys of items that are folded
  };

  const Computed* find_computed(std::string_view key_namespace) const;

  std::vector<ItemFields> items_;
  std::vector<ItemSpan> spans_;
  std::vector<std::int64_t> furthest_;  // for each span, the largest stop up to this span: ascending
  std::vector<Computed> computed_;      // as a rule, of one pipeline
  std::size_t num_to_fold_ = 0;         // items that are folded in a namespace that is not empty
  std::size_t num_with_tenant_ = 0;     // items that are folded in every namespace
};

class ItemArrays::Keys {
 public:
  Keys(const ItemArrays& arrays, std::string_view key_namespace)
      : arrays_(arrays), computed_(arrays.find_computed(key_namespace)), folds_(!key_namespace.empty()) {}

  // The key of the item at `position`; null if it is not known, or the item has rows.
  const Key* find(std::int64_t position) const {
    const ItemFields& fields = arrays_.item(position);
    if (fields.has_rows) return nullptr;
    if (fields.key && !fields.is_folded(folds_)) return &*fields.key;
    const auto index = static_cast<std::size_t>(position);
    if (computed_ == nullptr || index >= computed_->keys.size()) return nullptr;
    const std::optional<Key>& key = computed_->keys[index];
    return key ? &*key : nullptr;
  }

 private:
  const ItemArrays& arrays_;
  const Computed* computed_;
  bool folds_;
};

}  // namespace vitcache
