#include "pipeline/item_arrays.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

namespace vitcache {

void ItemArrays::add_span(std::int64_t start, std::int64_t length, std::int64_t source_start,
                          std::int64_t number) {
  if (length == 0) return;
  const auto position = static_cast<std::int64_t>(items_.size()) - 1;
  for (const auto& [name, value] : {std::pair<const char*, std::int64_t>{"start", start},
                                    {"length", length},
                                    {"source_start", source_start}})
    if (value > kLargestToken)
      throw std::out_of_range("item " + std::to_string(position) + ": span " + name + " is " +
                              std::to_string(value) + ", it must be at most " +
                              std::to_string(kLargestToken));
  spans_.push_back({start, position, length, source_start, number});
}

void ItemArrays::sort_spans() {
  const auto before = [](const ItemSpan& a, const ItemSpan& b) {
    return std::tie(a.start, a.position, a.length, a.source_start) <
           std::tie(b.start, b.position, b.length, b.source_start);
  };
  // Prompts list their items in order, so the sort is rarely needed.
  if (!std::is_sorted(spans_.begin(), spans_.end(), before)) std::sort(spans_.begin(), spans_.end(), before);
  furthest_.reserve(spans_.size());
  for (const ItemSpan& span : spans_)
    furthest_.push_back(furthest_.empty() ? span.stop() : std::max(furthest_.back(), span.stop()));
}

std::pair<std::size_t, std::size_t> ItemArrays::find_spans(std::int64_t start, std::int64_t stop) const {
  if (start == stop) return {0, 0};  // an empty range overlaps no span, even if it is inside one
  const auto first = std::upper_bound(furthest_.begin(), furthest_.end(), start) - furthest_.begin();
  const auto last =
      std::lower_bound(spans_.begin(), spans_.end(), stop,
                       [](const ItemSpan& span, std::int64_t end) { return span.start < end; }) -
      spans_.begin();
  return {static_cast<std::size_t>(first), static_cast<std::size_t>(std::max(first, last))};
}

void ItemArrays::set_computed(std::int64_t position, std::string_view key_namespace, const Key& key) {
  const std::size_t number = find_namespace(key_namespace);
  if (number == namespaces_.size()) namespaces_.emplace_back(key_namespace);
  ItemFields& item = items_[static_cast<std::size_t>(position)];
  item.computed_key = key;
  item.computed_in = number;
}

// For a namespace without a key, the number that follows the last one.
std::size_t ItemArrays::find_namespace(std::string_view key_namespace) const {
  const auto found = std::find(namespaces_.begin(), namespaces_.end(), key_namespace);
  return static_cast<std::size_t>(found - namespaces_.begin());
}

}  // namespace vitcache
