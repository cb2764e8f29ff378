// Plans of random steps, against the truth of fuzz_plan.h.
#include "fuzz_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"

namespace fuzz {
namespace {

using vitcache::AcceptedWidths;
using vitcache::ItemFields;
using vitcache::ItemSpan;
using vitcache::Key;
using vitcache::kLargestToken;
using vitcache::StepPlan;
using vitcache::Window;

constexpr const char* kNamespace = "tenant";

Key some_key(Random& random) { return Key{{static_cast<std::uint64_t>(random.up_to(2)), 0, 0, 0}}; }

// The fields of the caller's object at an address: they follow from the address, wherever a request has the
// object.
ItemFields fields_of(std::uintptr_t identity, std::uint64_t seed) {
  Random random(seed + identity);
  ItemFields fields{};
  fields.identity = 16 * identity;
  fields.num_rows = random.pick<std::int64_t>({4, 4, 4, 9});
  fields.row_width = random.pick<std::int64_t>({0, 0, 0, 12, 4, 5});
  fields.has_rows = random.one_in(6);
  fields.is_key_complete = random.one_in(3);
  if (random.one_in(2)) fields.key = some_key(random);
  return fields;
}

// A number of a span: rarely beside a bound, or any other number.
std::int64_t some_number(Random& random, std::int64_t usual) {
  if (!random.one_in(150)) return usual;
  return random.one_in(2) ? kLargestToken - 1 + random.up_to(2) : random.number(8, 1);
}

// Adds the spans of the last item from `token` on. Returns false if a span was refused, as it should be.
bool add_spans(Random& random, Request& request, std::int64_t& token) {
  for (std::int64_t number = 0; random.one_in(2); ++number) {
    const std::int64_t begin = token + random.up_to(3), length = random.up_to(4);
    token = begin + length;
    ItemSpan span{some_number(random, begin), static_cast<std::int64_t>(request.items.size()) - 1,
                  some_number(random, length), some_number(random, random.up_to(5)), number};
    bool is_valid = span.source_start >= 0;
    for (const std::int64_t value : {span.start, span.length})
      is_valid = is_valid && value >= 0 && value <= kLargestToken;
    const auto add = [&] { request.arrays.add_span(span.start, span.length, span.source_start, number); };
    CHECK_EQUAL(is_accepted(add), is_valid || span.length == 0);
    if (!is_valid) return false;
    span.source_start = std::min(span.source_start, kLargestToken);
    if (span.length > 0) request.items.back().spans.push_back(span);
  }
  return true;
}

bool build(Random& random, Request& request, std::uint64_t seed, bool has_namespace) {
  std::int64_t token = 0;
  const std::int64_t num_items = random.up_to(5);
  for (std::int64_t item = 0; item < num_items; ++item) {
    const ItemFields fields = fields_of(static_cast<std::uintptr_t>(random.up_to(7)), seed);
    request.arrays.add_item(fields);
    request.items.push_back({fields, fields.key, {}});
    if (has_namespace && fields.is_folded()) request.items.back().key.reset();
    if (!add_spans(random, request, token)) return false;
  }
  for (std::int64_t item = 0; item < num_items; ++item) {
    Request::Item& added = request.items[static_cast<std::size_t>(item)];
    if (added.key || added.fields.has_rows || random.one_in(3)) continue;
    // Equal objects have equal contents, so that their keys are equal wherever they are computed.
    Random content(added.fields.identity + seed);
    added.key = some_key(content);
    request.arrays.set_computed(item, has_namespace ? kNamespace : "", *added.key);
  }
  request.arrays.sort_spans();
  return true;
}

std::vector<Window> some_windows(Random& random, const std::vector<Request>& requests,
                                 std::vector<const Request*>& used) {
  std::vector<Window> windows;
  std::int64_t offset = 0;
  for (std::int64_t count = random.up_to(4); count > 0; --count) {
    used.push_back(
        &requests[static_cast<std::size_t>(random.up_to(static_cast<std::int64_t>(requests.size()) - 1))]);
    Window window{&used.back()->arrays, random.up_to(12), random.up_to(16), offset + random.up_to(1)};
    offset = window.token_offset + window.length;
    for (std::int64_t* const number : {&window.start, &window.length, &window.token_offset})
      if (random.one_in(60)) *number = random.one_in(2) ? random.up_to(2 * kLargestToken) : random.up_to(20);
    windows.push_back(window);
    if (random.one_in(4) && windows.size() > 1) {
      std::swap(windows.back(), windows.front());
      std::swap(used.back(), used.front());
    }
  }
  return windows;
}

std::int64_t some_batch(Random& random, const std::vector<Window>& windows) {
  if (random.one_in(3)) return StepPlan::kNoBatch;
  if (random.one_in(10)) return random.number(60, 3);
  std::int64_t end = 0;
  for (const Window& window : windows) end = std::max(end, window.token_offset + window.length);
  return end;
}

void check_last_stops(const Request& request, const char* key_namespace) {
  for (std::size_t i = 0; i < request.items.size(); ++i) {
    std::int64_t expected = 0;
    const Request::Item& item = request.items[i];
    const bool has_key = item.key && !item.fields.has_rows;
    for (const Request::Item& other : request.items) {
      const bool is_equal = has_key && other.key == item.key && !other.fields.has_rows &&
                            other.fields.num_rows == item.fields.num_rows &&
                            other.fields.row_width == item.fields.row_width;
      if (!is_equal && other.fields.identity != item.fields.identity) continue;
      for (const ItemSpan& span : other.spans) expected = std::max(expected, span.stop());
    }
    CHECK_EQUAL(request.arrays.last_stop(static_cast<std::int64_t>(i), key_namespace), expected);
  }
}

void check_merge(Random& random, StepPlan& plan, Plan& expected) {
  for (const std::int64_t item : plan.unkeyed()) {
    if (random.one_in(3)) continue;
    vitcache::PlannedItem& planned = expected.items[static_cast<std::size_t>(item)].item;
    planned.key = some_key(random);
    planned.has_key = true;
    plan.set_key(item, planned.key);
  }
  CHECK(plan.merge() == merge(expected));
  check_equal(plan, expected);
}

}  // namespace

Verdict step_plan(Random& random) {
  const std::uint64_t seed = random.bits();
  const bool has_namespace = random.one_in(2);
  const char* const key_namespace = has_namespace ? kNamespace : "";
  std::vector<Request> requests(static_cast<std::size_t>(1 + random.up_to(2)));
  for (Request& request : requests) {
    if (!build(random, request, seed, has_namespace)) return Verdict::kRefused;
    check_last_stops(request, key_namespace);
  }
  std::vector<const Request*> used;
  const std::vector<Window> windows = some_windows(random, requests, used);
  const std::int64_t num_tokens = some_batch(random, windows);
  const AcceptedWidths widths{random.pick<std::int64_t>({0, 12, 12}), random.pick<std::int64_t>({0, 4, 12})};
  Plan expected = true_plan(used, windows, num_tokens, widths);
  std::optional<StepPlan> plan;
  CHECK_EQUAL(is_accepted([&] { plan.emplace(windows, key_namespace, num_tokens, widths); }),
              !expected.is_refused);
  if (!plan) return Verdict::kRefused;
  CHECK_EQUAL(plan->num_chunks(), windows.size());
  check_equal(*plan, expected);
  check_merge(random, *plan, expected);
  return Verdict::kAccepted;
}

}  // namespace fuzz
