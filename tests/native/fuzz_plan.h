// A step plan as lists that are searched from their beginning: the truth for `StepPlan`.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "fuzz.h"
#include "pipeline/step_plan.h"

namespace fuzz {

using Place = std::pair<std::int64_t, std::int64_t>;  // (chunk, position)

// One request: items with spans, in the order in which they were added.
struct Request {
  struct Item {
    vitcache::ItemFields fields;
    std::optional<vitcache::Key> key;  // in the plan's namespace
    std::vector<vitcache::ItemSpan> spans;
  };
  std::vector<Item> items;
  vitcache::ItemArrays arrays;
};

struct Object {
  std::size_t number;  // in the order in which the step finds objects
  std::uintptr_t identity;
  std::vector<Place> occurrences;
};

struct Planned {
  vitcache::PlannedItem item;
  std::vector<Object> objects;
};

struct Plan {
  std::vector<Planned> items;
  std::vector<vitcache::Run> runs;
  std::size_t num_objects = 0;
  bool is_refused = false;
};

Plan true_plan(const std::vector<const Request*>& requests, const std::vector<vitcache::Window>& windows,
               std::int64_t num_tokens, const vitcache::AcceptedWidths& widths);

// Merges the items that share a key, a number of rows and a width. Returns the new index of each item.
std::vector<std::int64_t> merge(Plan& plan);

void check_equal(const vitcache::StepPlan& plan, const Plan& expected);

}  // namespace fuzz
