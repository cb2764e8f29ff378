// The constructor of a StepPlan.
#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/index_table.h"
#include "pipeline/step_plan.h"

namespace vitcache {
namespace {

using Bounds = std::pair<std::size_t, std::size_t>;

// The addresses of Python objects are multiples of 16, so the low bits of the hash are taken from all bits.
std::size_t hash_of_object(std::uintptr_t identity) {
  const std::uint64_t hash = identity * 0x9e3779b97f4a7c15ULL;
  return hash ^ (hash >> 32);
}

// The part of a span in a window, counted from the window's first token.
Run clip(const ItemSpan& span, const Window& window) {
  const std::int64_t first = std::max(span.start, window.start);
  const std::int64_t last = std::min(span.stop(), window.start + window.length);
  return {span.position, first - window.start, last - first, span.source_start + first - span.start};
}

// Throws for the first two runs that overlap, in the order of their tokens; runs that begin at one token are
// in the order in which their items were first found.
[[noreturn]] void refuse_overlap(std::size_t chunk, const Window& window, const Bounds& bounds) {
  std::vector<Run> runs;
  std::map<std::int64_t, std::size_t> place_of;
  for (std::size_t i = bounds.first; i < bounds.second; ++i) {
    const ItemSpan& span = window.items->spans()[i];
    if (span.stop() <= window.start) continue;
    place_of.emplace(span.position, place_of.size());
    runs.push_back(clip(span, window));
  }
  std::stable_sort(runs.begin(), runs.end(), [&](const Run& a, const Run& b) {
    return std::pair(a.start, place_of[a.item]) < std::pair(b.start, place_of[b.item]);
  });
  const auto overlap = std::adjacent_find(
      runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.start + a.length > b.start; });
  const Run& first = overlap[0];
  const Run& second = overlap[1];
  throw std::invalid_argument(
      "chunk " + std::to_string(chunk) + ": spans overlap: one of item " + std::to_string(first.item) +
      " covers tokens [" + std::to_string(window.start + first.start) + ", " +
      std::to_string(window.start + first.start + first.length) + ") of the prompt, one of item " +
      std::to_string(second.item) + " begins at token " + std::to_string(window.start + second.start));
}

}  // namespace

class StepPlan::Builder {
 public:
  // The windows have at most `max_runs` runs, and so at most as many items, objects and occurrences.
  Builder(StepPlan& plan, std::size_t max_runs) : plan_(plan), by_object_(max_runs), by_key_(max_runs) {
    plan.items_.reserve(max_runs);
    plan.objects_of_.reserve(max_runs);
    plan.objects_.reserve(max_runs);
    plan.occurrences_.reserve(max_runs);
    plan.runs_.reserve(max_runs);
  }

  // `keys` are those of the window's items in the plan's namespace; `offset`, the first token of the runs.
  void add(std::size_t chunk, const Window& window, const Bounds& bounds, const ItemArrays::Keys& keys,
           std::int64_t offset) {
    std::int64_t end = offset;  // of the runs so far: spans are sorted, so their parts in a window are, too
    for (std::size_t i = bounds.first; i < bounds.second; ++i) {
      const ItemSpan& span = window.items->spans()[i];
      if (span.stop() <= window.start) continue;
      Run run = clip(span, window);
      run.start += offset;
      if (run.start < end) refuse_overlap(chunk, window, bounds);
      end = run.start + run.length;
      Object& object = find_object(window.items->item(span.position), keys.find(span.position));
      add_occurrence(object, {static_cast<std::int64_t>(chunk), span.position});
      PlannedItem& item = plan_.items_[object.item];
      item.needed_rows = std::max(item.needed_rows, run.source_start + run.length);
      run.item = static_cast<std::int64_t>(object.item);
      plan_.runs_.push_back(run);
    }
  }

 private:
  Object& find_object(const ItemFields& fields, const Key* key) {
    std::vector<Object>& objects = plan_.objects_;
    const std::size_t object =
        by_object_.find_or_add(hash_of_object(fields.identity), objects.size(),
                               [&](std::size_t other) { return objects[other].identity == fields.identity; });
    if (object < objects.size()) return objects[object];
    const std::size_t item = find_item(fields, key);
    objects.push_back({fields.identity, item, kNone, kNone, kNone});
    ObjectList& list = plan_.objects_of_[item];
    (list.first == kNone ? list.first : objects[list.last].next) = object;
    list.last = object;
    return objects.back();
  }

  std::size_t find_item(const ItemFields& fields, const Key* key) {
    const std::int64_t width = fields.row_width == 0 ? plan_.widths_.row_width : fields.row_width;
    const bool fits = plan_.widths_.accept(width);
    if (!fits) key = nullptr;  // the cache must not look for such rows
    std::vector<PlannedItem>& items = plan_.items_;
    if (key != nullptr) {
      const std::size_t item =
          by_key_.find_or_add(hash_of(*key, fields.num_rows), items.size(), [&](std::size_t other) {
            return items[other].num_rows == fields.num_rows && items[other].row_width == width &&
                   items[other].key == *key;
          });
      if (item < items.size()) return item;
    }
    items.push_back(
        {key == nullptr ? Key{} : *key, key != nullptr, fields.has_rows, fits, fields.num_rows, width, 0});
    plan_.objects_of_.push_back({kNone, kNone});
    return items.size() - 1;
  }

  // Several spans of one item in one chunk are one occurrence.
  void add_occurrence(Object& object, const Occurrence& place) {
    std::vector<LinkedOccurrence>& occurrences = plan_.occurrences_;
    const std::size_t last = object.last_occurrence;
    if (last != kNone && occurrences[last].place.chunk == place.chunk &&
        occurrences[last].place.position == place.position)
      return;
    const std::size_t added = occurrences.size();
    occurrences.push_back({place, kNone});
    (last == kNone ? object.first_occurrence : occurrences[last].next) = added;
    object.last_occurrence = added;
  }

  StepPlan& plan_;
  IndexTable by_object_;
  IndexTable by_key_;
};

StepPlan::StepPlan(const std::vector<Window>& windows, std::string_view key_namespace,
                   std::int64_t num_tokens, const AcceptedWidths& widths)
    : widths_(widths) {
  const bool has_batch = num_tokens != kNoBatch;
  if (has_batch) {
    check_fit(windows, num_tokens);
    check_apart(windows);
  }
  std::vector<Bounds> bounds;
  bounds.reserve(windows.size());
  stops_.reserve(windows.size());
  std::size_t max_runs = 0;
  for (const Window& window : windows) {
    bounds.push_back(window.items->find_spans(window.start, window.start + window.length));
    max_runs += bounds.back().second - bounds.back().first;
    stops_.push_back(window.start + window.length);
  }
  if (max_runs == 0) return;
  Builder builder(*this, max_runs);
  for (std::size_t chunk = 0; chunk < windows.size(); ++chunk)
    builder.add(chunk, windows[chunk], bounds[chunk], windows[chunk].items->keys_in(key_namespace),
                has_batch ? windows[chunk].token_offset : 0);
}

}  // namespace vitcache
