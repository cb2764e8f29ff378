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
                                    {"source_start", source_start}}) {
    // No item has that many rows, so a larger `source_start` fails its item alone, in the step.
    const bool is_limited = name != std::string_view("source_start");
    if (value >= 0 && (value <= kLargestToken || !is_limited)) continue;
    const std::string label =
        "item " + std::to_string(position) + ": span " + name + " is " + std::to_string(value);
    if (value < 0) throw std::invalid_argument(label + ", it must be at least 0");
    throw std::out_of_range(label + ", it must be at most " + std::to_string(kLargestToken));
  }
  spans_.push_back({start, position, length, std::min(source_start, kLargestToken), number});
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
  auto found = std::find_if(computed_.begin(), computed_.end(), [&](const Computed& computed) {
    return computed.key_namespace == key_namespace;
  });
  if (found == computed_.end()) found = computed_.insert(found, {std::string(key_namespace), {}, 0});
  if (found->keys.size() < items_.size()) found->keys.resize(items_.size());
  std::optional<Key>& slot = found->keys[static_cast<std::size_t>(position)];
  if (!slot && item(position).is_folded(!key_namespace.empty())) ++found->num_folded;
  slot = key;
}

bool ItemArrays::has_unfolded(std::string_view key_namespace) const {
  const std::size_t num_to_fold = key_namespace.empty() ? num_with_tenant_ : num_to_fold_;
  if (num_to_fold == 0) return false;
  const Computed* computed = find_computed(key_namespace);
  return computed == nullptr || computed->num_folded < num_to_fold;
}

std::vector<std::pair<std::int64_t, Key>> ItemArrays::unfolded(std::string_view key_namespace) const {
  std::vector<std::pair<std::int64_t, Key>> found;
  if (!has_unfolded(key_namespace)) return found;
  const Keys keys = keys_in(key_namespace);
  for (std::size_t i = 0; i < items_.size(); ++i)
    if (const auto position = static_cast<std::int64_t>(i);
        items_[i].is_folded(!key_namespace.empty()) && keys.find(position) == nullptr)
      found.emplace_back(position, *items_[i].key);
  return found;
}

ItemArrays::Keys ItemArrays::keys_in(std::string_view key_namespace) const { return {*this, key_namespace}; }

std::int64_t ItemArrays::last_stop(std::int64_t position, std::string_view key_namespace) const {
  const Keys keys = keys_in(key_namespace);
  const Key* const key = keys.find(position);
  const ItemFields& wanted = item(position);
  std::int64_t stop = 0;
  for (const ItemSpan& span : spans_) {
    const ItemFields& other = item(span.position);
    const Key* const other_key = keys.find(span.position);
    const bool is_equal = key != nullptr && other_key != nullptr && *other_key == *key &&
                          other.num_rows == wanted.num_rows && other.row_width == wanted.row_width;
    if (is_equal || other.identity == wanted.identity) stop = std::max(stop, span.stop());
  }
  return stop;
}

const ItemArrays::Computed* ItemArrays::find_computed(std::string_view key_namespace) const {
  for (const Computed& computed : computed_)
    if (computed.key_namespace == key_namespace) return &computed;
  return nullptr;
}

}  // namespace vitcache
