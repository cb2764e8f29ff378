#include <algorithm>
#include <tuple>

#include "check.h"
#include "fuzz_plan.h"

namespace fuzz {
namespace {

using vitcache::AcceptedWidths;
using vitcache::ItemSpan;
using vitcache::PlannedItem;
using vitcache::Run;
using vitcache::StepPlan;
using vitcache::Window;

bool meet(Wide a, Wide a_end, Wide b, Wide b_end) { return a < b_end && b < a_end; }

bool is_batch_wrong(const std::vector<Window>& windows, std::int64_t num_tokens) {
  for (const Window& window : windows)
    if (Wide{window.token_offset} + window.length > num_tokens) return true;
  for (std::size_t i = 0; i < windows.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (windows[i].length > 0 && windows[j].length > 0 &&
          meet(windows[i].token_offset, Wide{windows[i].token_offset} + windows[i].length,
               windows[j].token_offset, Wide{windows[j].token_offset} + windows[j].length))
        return true;
  return false;
}

// The spans of a request that overlap a window, in the order of their starts, then of their items.
std::vector<ItemSpan> spans_within(const Request& request, const Window& window) {
  std::vector<ItemSpan> found;
  for (const Request::Item& item : request.items)
    for (const ItemSpan& span : item.spans)
      if (meet(span.start, Wide{span.start} + span.length, window.start,
               Wide{window.start} + window.length) &&
          window.length > 0)
        found.push_back(span);
  std::sort(found.begin(), found.end(), [](const ItemSpan& a, const ItemSpan& b) {
    return std::tie(a.start, a.position, a.length, a.source_start) <
           std::tie(b.start, b.position, b.length, b.source_start);
  });
  return found;
}

bool are_equal(const PlannedItem& a, const PlannedItem& b) {
  return a.has_key && b.has_key && a.key == b.key && a.num_rows == b.num_rows && a.row_width == b.row_width;
}

std::size_t item_for(Plan& plan, const Request::Item& found, const Place& place,
                     const AcceptedWidths& widths) {
  for (std::size_t item = 0; item < plan.items.size(); ++item)
    for (Object& object : plan.items[item].objects) {
      if (object.identity != found.fields.identity) continue;
      if (object.occurrences.back() != place) object.occurrences.push_back(place);
      return item;
    }
  PlannedItem planned{};
  planned.num_rows = found.fields.num_rows;
  planned.row_width = found.fields.row_width == 0 ? widths.row_width : found.fields.row_width;
  planned.has_rows = found.fields.has_rows;
  planned.fits = widths.accept(planned.row_width);
  planned.has_key = planned.fits && found.key.has_value() && !planned.has_rows;
  if (planned.has_key) planned.key = *found.key;
  const Object object{plan.num_objects++, found.fields.identity, {place}};
  for (std::size_t item = 0; item < plan.items.size(); ++item)
    if (are_equal(plan.items[item].item, planned)) {
      plan.items[item].objects.push_back(object);
      return item;
    }
  plan.items.push_back({planned, {object}});
  return plan.items.size() - 1;
}

}  // namespace

Plan true_plan(const std::vector<const Request*>& requests, const std::vector<Window>& windows,
               std::int64_t num_tokens, const AcceptedWidths& widths) {
  Plan plan;
  const bool has_batch = num_tokens != StepPlan::kNoBatch;
  plan.is_refused = has_batch && is_batch_wrong(windows, num_tokens);
  for (std::size_t chunk = 0; chunk < windows.size() && !plan.is_refused; ++chunk) {
    const Window& window = windows[chunk];
    Wide end = 0;
    for (const ItemSpan& span : spans_within(*requests[chunk], window)) {
      const Wide first = std::max(span.start, window.start);
      const Wide last = std::min(Wide{span.start} + span.length, Wide{window.start} + window.length);
      const Wide start = first - window.start + (has_batch ? window.token_offset : 0);
      if (first < end) plan.is_refused = true;
      end = last;
      const Request::Item& found = requests[chunk]->items[static_cast<std::size_t>(span.position)];
      const std::size_t item =
          item_for(plan, found, {static_cast<std::int64_t>(chunk), span.position}, widths);
      const Run run{static_cast<std::int64_t>(item), static_cast<std::int64_t>(start),
                    static_cast<std::int64_t>(last - first),
                    static_cast<std::int64_t>(span.source_start + first - span.start)};
      plan.items[item].item.needed_rows =
          std::max(plan.items[item].item.needed_rows, run.source_start + run.length);
      plan.runs.push_back(run);
    }
  }
  return plan;
}

std::vector<std::int64_t> merge(Plan& plan) {
  std::vector<Planned> merged;
  std::vector<std::int64_t> mapping;
  for (const Planned& planned : plan.items) {
    std::size_t target = 0;
    while (target < merged.size() && !are_equal(merged[target].item, planned.item)) ++target;
    mapping.push_back(static_cast<std::int64_t>(target));
    if (target == merged.size()) {
      merged.push_back(planned);
      continue;
    }
    merged[target].item.needed_rows = std::max(merged[target].item.needed_rows, planned.item.needed_rows);
    merged[target].objects.insert(merged[target].objects.end(), planned.objects.begin(),
                                  planned.objects.end());
  }
  for (Run& run : plan.runs) run.item = mapping[static_cast<std::size_t>(run.item)];
  for (Planned& planned : merged)  // in the order in which the step finds the objects
    std::sort(planned.objects.begin(), planned.objects.end(),
              [](const Object& a, const Object& b) { return a.number < b.number; });
  const bool is_changed = merged.size() != plan.items.size();
  plan.items = std::move(merged);
  return is_changed ? mapping : std::vector<std::int64_t>();
}

void check_equal(const StepPlan& plan, const Plan& expected) {
  CHECK_EQUAL(plan.items().size(), expected.items.size());
  CHECK_EQUAL(plan.runs().size(), expected.runs.size());
  for (std::size_t i = 0; i < expected.runs.size(); ++i) {
    const Run& run = plan.runs()[i];
    const Run& other = expected.runs[i];
    CHECK(std::tie(run.item, run.start, run.length, run.source_start) ==
          std::tie(other.item, other.start, other.length, other.source_start));
  }
  std::vector<std::int64_t> unkeyed, given;
  for (std::size_t i = 0; i < expected.items.size(); ++i) {
    const PlannedItem& item = plan.items()[i];
    const PlannedItem& other = expected.items[i].item;
    const auto index = static_cast<std::int64_t>(i);
    CHECK(std::tie(item.has_key, item.has_rows, item.fits, item.num_rows, item.row_width, item.needed_rows) ==
          std::tie(other.has_key, other.has_rows, other.fits, other.num_rows, other.row_width,
                   other.needed_rows));
    CHECK(item.key == other.key);
    if (other.has_rows) given.push_back(index);
    if (!other.has_key && !other.has_rows && other.fits) unkeyed.push_back(index);
    std::vector<Place> places, firsts, found;
    for (const Object& object : expected.items[i].objects) {
      places.insert(places.end(), object.occurrences.begin(), object.occurrences.end());
      firsts.push_back(object.occurrences.front());
    }
    const auto as_places = [&found](const std::vector<vitcache::Occurrence>& occurrences) {
      found.clear();
      for (const vitcache::Occurrence& occurrence : occurrences)
        found.emplace_back(occurrence.chunk, occurrence.position);
      return found;
    };
    CHECK(as_places(plan.occurrences(index)) == places);
    CHECK(as_places({plan.occurrence(index)}) == std::vector<Place>{firsts.front()});
    firsts.erase(firsts.begin());
    CHECK(as_places(plan.duplicates(index)) == firsts);
  }
  CHECK(plan.unkeyed() == unkeyed);
  CHECK(plan.given() == given);
}

}  // namespace fuzz
