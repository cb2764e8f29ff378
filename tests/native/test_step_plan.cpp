// The arrays of a request's items, and the plan of a step.
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "pipeline/index_table.h"
#include "pipeline/item_arrays.h"
#include "pipeline/step_plan.h"
#include "pipeline/window.h"

namespace {

using vitcache::IndexTable;
using vitcache::ItemArrays;
using vitcache::ItemFields;
using vitcache::Key;
using vitcache::kLargestToken;
using vitcache::Occurrence;
using vitcache::StepPlan;
using Indices = std::vector<std::int64_t>;
using Places = std::vector<std::pair<std::int64_t, std::int64_t>>;

Key key_of(std::uint64_t number) { return Key{{number, 0, 0, 0}}; }

ItemFields keyed(std::uintptr_t identity, std::uint64_t key, std::int64_t num_rows = 4) {
  ItemFields fields{};
  fields.identity = identity;
  fields.num_rows = num_rows;
  fields.key = key_of(key);
  return fields;
}

ItemFields unkeyed(std::uintptr_t identity, std::int64_t num_rows = 4) {
  ItemFields fields{};
  fields.identity = identity;
  fields.num_rows = num_rows;
  return fields;
}

Places places_of(const std::vector<Occurrence>& occurrences) {
  Places places;
  for (const Occurrence& occurrence : occurrences) places.emplace_back(occurrence.chunk, occurrence.position);
  return places;
}

// An item of 4 rows at each of the tokens 0, 10, 20, ...
ItemArrays row_of_items(std::int64_t count, std::uintptr_t first_identity = 16) {
  ItemArrays arrays;
  for (std::int64_t number = 0; number < count; ++number) {
    arrays.add_item(
        keyed(first_identity + static_cast<std::uintptr_t>(number), static_cast<std::uint64_t>(number)));
    arrays.add_span(10 * number, 4, 0, 0);
  }
  arrays.sort_spans();
  return arrays;
}

void spans_are_found_by_bisection() {
  const ItemArrays arrays = row_of_items(100'000);
  CHECK((arrays.find_spans(500'000, 500'020) == std::pair<std::size_t, std::size_t>{50'000, 50'002}));
  CHECK((arrays.find_spans(4, 10).first == arrays.find_spans(4, 10).second));
  CHECK((arrays.find_spans(2, 2) == std::pair<std::size_t, std::size_t>{0, 0}));
  CHECK((arrays.find_spans(-2 * kLargestToken, 2 * kLargestToken) ==
         std::pair<std::size_t, std::size_t>{0, 100'000}));
  CHECK(ItemArrays().spans().empty());
}

void a_long_span_is_found_behind_shorter_ones() {
  ItemArrays arrays;
  arrays.add_item(unkeyed(16, 100));
  arrays.add_span(50, 2, 90, 0);
  arrays.add_span(0, 90, 0, 1);
  arrays.add_item(unkeyed(17));
  arrays.add_span(3, 2, 0, 0);
  arrays.add_span(7, 0, 0, 1);
  arrays.sort_spans();
  CHECK_EQUAL(arrays.spans().size(), std::size_t{3});
  CHECK_EQUAL(arrays.spans()[0].number, 1);
  CHECK((arrays.find_spans(80, 81) == std::pair<std::size_t, std::size_t>{0, 3}));
}

void equal_items_of_two_requests_are_merged() {
  const ItemArrays first = row_of_items(3, 16);
  const ItemArrays second = row_of_items(2, 100);
  const StepPlan plan({{&first, 2, 30, 0}, {&second, 0, 20, 30}}, "", 50);
  CHECK_EQUAL(plan.items().size(), std::size_t{3});
  CHECK((places_of(plan.occurrences(0)) == Places{{0, 0}, {1, 0}}));
  CHECK((places_of(plan.duplicates(0)) == Places{{1, 0}}));
  CHECK(plan.duplicates(2).empty());
  CHECK_EQUAL(plan.items()[0].needed_rows, 4);
  CHECK_EQUAL(plan.runs().size(), std::size_t{5});
  CHECK_EQUAL(plan.runs()[0].source_start, 2);
  CHECK_EQUAL(plan.runs()[4].item, 1);
  CHECK_EQUAL(plan.runs()[4].start, 40);
}

void keys_that_are_found_later_merge_items() {
  ItemArrays arrays;
  for (std::uintptr_t identity = 16; identity < 20; ++identity) {
    arrays.add_item(identity == 17 ? keyed(identity, 5) : unkeyed(identity));
    arrays.add_span(static_cast<std::int64_t>(10 * identity), 2, identity == 18 ? 2 : 0, 0);
  }
  ItemFields given = unkeyed(30);
  given.has_rows = true;
  given.key = key_of(5);  // rows come before a key
  arrays.add_item(given);
  arrays.add_span(0, 4, 0, 0);
  arrays.sort_spans();
  StepPlan plan({{&arrays, 0, kLargestToken, 0}, {&arrays, 0, 5, 0}}, "", StepPlan::kNoBatch);
  CHECK((plan.unkeyed() == Indices{1, 3, 4}));
  CHECK((plan.given() == Indices{0}));
  CHECK(plan.merge().empty());
  plan.set_key(1, key_of(5));
  plan.set_key(3, key_of(5));
  plan.set_key(4, key_of(6));
  CHECK((plan.merge() == Indices{0, 1, 1, 1, 2}));
  CHECK((places_of(plan.occurrences(0)) == Places{{0, 4}, {1, 4}}));
  CHECK((places_of(plan.occurrences(1)) == Places{{0, 0}, {0, 1}, {0, 2}}));
  CHECK((places_of(plan.duplicates(1)) == Places{{0, 1}, {0, 2}}));
  CHECK_EQUAL(plan.occurrence(2).position, 3);
  CHECK_EQUAL(plan.items()[1].needed_rows, 4);
  CHECK_EQUAL(plan.runs()[4].item, 2);
}

void a_computed_key_is_valid_in_its_namespace() {
  ItemArrays arrays;
  for (std::uintptr_t identity = 16; identity < 18; ++identity) {
    arrays.add_item(unkeyed(identity));
    arrays.add_span(static_cast<std::int64_t>(identity), 1, 0, 0);
  }
  arrays.sort_spans();
  const auto unkeyed_in = [&arrays](const char* name) {
    return StepPlan({{&arrays, 0, 40, 0}}, name, 40).unkeyed();
  };
  CHECK((unkeyed_in("") == Indices{0, 1}));
  arrays.set_computed(0, "a", key_of(1));
  arrays.set_computed(1, "b", key_of(1));
  CHECK((unkeyed_in("a") == Indices{1}));
  CHECK((unkeyed_in("b") == Indices{0}));
  CHECK((unkeyed_in("c") == Indices{0, 1}));
  arrays.set_computed(1, "a", key_of(1));
  CHECK(unkeyed_in("a").empty());
  CHECK_EQUAL(StepPlan({{&arrays, 0, 40, 0}}, "a", 40).items().size(), std::size_t{1});
}

ItemFields given(std::uintptr_t identity, std::uint64_t key, bool is_complete) {
  ItemFields fields = keyed(identity, key);
  fields.is_key_complete = is_complete;
  return fields;
}

void a_namespace_is_folded_into_given_keys_once() {
  ItemArrays arrays;
  arrays.add_item(given(16, 1, false));
  arrays.add_span(0, 2, 0, 0);
  arrays.add_item(given(17, 1, true));
  arrays.add_span(2, 2, 0, 0);
  arrays.set_computed(0, "early", key_of(9));  // before the last item is added
  arrays.add_item(given(18, 2, false));
  arrays.add_span(4, 2, 0, 0);
  arrays.sort_spans();
  const auto num_unfolded = [&arrays](const char* name) { return arrays.unfolded(name).size(); };
  CHECK(!arrays.has_unfolded(""));
  CHECK_EQUAL(num_unfolded(""), std::size_t{0});
  CHECK_EQUAL(num_unfolded("a"), std::size_t{2});
  CHECK_EQUAL(num_unfolded("early"), std::size_t{1});
  const auto unfolded = arrays.unfolded("early");
  CHECK_EQUAL(unfolded[0].first, 2);
  CHECK(unfolded[0].second == key_of(2));
  for (const auto& [position, key] : arrays.unfolded("a")) {
    CHECK(arrays.has_unfolded("a"));
    arrays.set_computed(position, "a", key_of(key.words[0] + 10));
    arrays.set_computed(position, "a", key_of(key.words[0] + 10));  // by another thread
  }
  CHECK(!arrays.has_unfolded("a"));
  const StepPlan plan({{&arrays, 0, 6, 0}}, "a", 6);
  CHECK(plan.items()[0].key == key_of(11));
  CHECK(plan.items()[1].key == key_of(1));
  CHECK(plan.items()[2].key == key_of(12));
  CHECK_EQUAL(StepPlan({{&arrays, 0, 6, 0}}, "", 6).items().size(), std::size_t{2});
  CHECK((StepPlan({{&arrays, 0, 6, 0}}, "early", 6).unkeyed() == Indices{2}));
}

void items_of_other_widths_are_other_items() {
  ItemArrays arrays;
  std::int64_t token = 0;
  for (const std::int64_t width : {0, 4, 12, 4, 5, 6}) {
    ItemFields fields = keyed(static_cast<std::uintptr_t>(16 + token), 1, 2);
    fields.row_width = width;
    arrays.add_item(fields);
    arrays.add_span(token, 2, 0, 0);
    token += 2;
  }
  arrays.sort_spans();
  const StepPlan step({{&arrays, 0, token, 0}}, "", token, {12, 4});
  const std::vector<bool> fits = {true, true, false, false};  // 12, 4, 5 and 6
  CHECK_EQUAL(step.items().size(), fits.size());
  for (std::size_t item = 0; item < fits.size(); ++item) {
    CHECK_EQUAL(step.items()[item].fits, fits[item]);
    CHECK_EQUAL(step.items()[item].has_key, fits[item]);
  }
  CHECK(step.unkeyed().empty());
  const StepPlan prefetch({{&arrays, 0, token, 0}}, "", StepPlan::kNoBatch, {12, 0});
  CHECK(!prefetch.items()[2].fits);
  CHECK(prefetch.items()[3].fits);
  CHECK_EQUAL(prefetch.stop(0), token);
  CHECK_EQUAL(arrays.last_stop(1, ""), 8);
  CHECK_EQUAL(arrays.last_stop(0, ""), 2);
}

void bad_batches_are_refused() {
  const ItemArrays none;
  CHECK_THROWS(StepPlan({{&none, 0, 5, 6}}, "", 10), std::out_of_range,
               "chunk 0 covers tokens [6, 11) of the batch, which has 10 tokens");
  CHECK_THROWS(StepPlan({{&none, 0, 4, 4}, {&none, 0, 5, 0}}, "", 10), std::invalid_argument,
               "chunks overlap: chunk 1 covers tokens [0, 5) of the batch, chunk 0 begins at token 4");
  const StepPlan empty_inside({{&none, 0, 5, 0}, {&none, 0, 0, 3}, {&none, 0, 5, 5}}, "", 10);
  CHECK(empty_inside.items().empty());
  CHECK(StepPlan({}, "", 0).runs().empty());
}

void overlapping_spans_and_large_numbers_are_refused() {
  ItemArrays arrays;
  arrays.add_item(unkeyed(16));
  arrays.add_span(kLargestToken, kLargestToken, 0, 0);
  arrays.add_item(unkeyed(17));
  arrays.add_span(kLargestToken, 2, 0, 0);
  CHECK_THROWS(arrays.add_span(0, kLargestToken + 1, 0, 1), std::out_of_range,
               "item 1: span length is 1152921504606846977, it must be at most 1152921504606846976");
  arrays.sort_spans();
  CHECK_THROWS(StepPlan({{&arrays, 0, 2 * kLargestToken, 0}}, "", StepPlan::kNoBatch), std::invalid_argument,
               "chunk 0: spans overlap: one of item 0 covers tokens [1152921504606846976, "
               "2305843009213693952) of the prompt, one of item 1 begins at token 1152921504606846976");
  CHECK(StepPlan({{&arrays, 0, kLargestToken, 0}}, "", StepPlan::kNoBatch).items().empty());
}

void runs_of_failed_items_read_from_the_first_row() {
  ItemArrays arrays;
  arrays.add_item(keyed(16, 1, kLargestToken));
  arrays.add_span(0, 3, kLargestToken - 3, 0);
  arrays.add_span(10, 5, 7, 1);
  arrays.add_item(keyed(17, 2, 6));
  arrays.add_span(4, 4, 2, 0);
  arrays.sort_spans();
  StepPlan plan({{&arrays, 0, 20, 0}}, "", 20);
  CHECK_EQUAL(plan.items()[0].needed_rows, kLargestToken);
  plan.read_from_start({0});
  CHECK_EQUAL(plan.items()[0].needed_rows, std::int64_t{5});
  CHECK_EQUAL(plan.items()[1].needed_rows, std::int64_t{6});
  Indices starts;
  for (const vitcache::Run& run : plan.runs()) starts.push_back(run.source_start);
  CHECK(starts == Indices({0, 2, 0}));
}

// Every element has the same hash, so that all of them are in one sequence of slots.
void a_table_finds_elements_with_equal_hashes() {
  IndexTable table(5);
  for (std::size_t index = 0; index < 5; ++index)
    CHECK_EQUAL(table.find_or_add(7, index, [](std::size_t) { return false; }), index);
  CHECK_EQUAL(table.find_or_add(7, 5, [](std::size_t index) { return index == 3; }), std::size_t{3});
}

}  // namespace

int main() {
  spans_are_found_by_bisection();
  a_long_span_is_found_behind_shorter_ones();
  equal_items_of_two_requests_are_merged();
  keys_that_are_found_later_merge_items();
  a_computed_key_is_valid_in_its_namespace();
  a_namespace_is_folded_into_given_keys_once();
  items_of_other_widths_are_other_items();
  bad_batches_are_refused();
  overlapping_spans_and_large_numbers_are_refused();
  runs_of_failed_items_read_from_the_first_row();
  a_table_finds_elements_with_equal_hashes();
}
