// The table of rows by key, which makes them the sources of a plan's placement.
#include <cstdint>
#include <vector>

#include "check.h"
#include "pipeline/item_arrays.h"
#include "pipeline/source_table.h"
#include "pipeline/step_plan.h"
#include "placement/destination.h"
#include "placement/placement.h"

namespace {

using vitcache::Destination;
using vitcache::ItemArrays;
using vitcache::ItemFields;
using vitcache::Key;
using vitcache::PagedRows;
using vitcache::Placement;
using vitcache::SourceTable;
using vitcache::StepPlan;
using Numbers = std::vector<std::int64_t>;

constexpr std::int64_t kHidden = 8;
constexpr std::int64_t kRows = 4;

Key key_of(std::uint64_t number) { return Key{{number, 7, 7, 7}}; }

// Rows of `width` float32 elements in two pages of two rows.
PagedRows rows_of(std::int64_t width, std::int64_t num_rows = kRows, bool on_cuda = false,
                  std::int32_t device = 0) {
  return PagedRows::make(4096, width * 4, num_rows, vitcache::kFloat32, {3, 1, 2}, 2, width, on_cuda, device);
}

// A plan of items with the keys 0, 1, ..., each with `kRows` rows at its own tokens.
StepPlan plan_of(std::int64_t count) {
  ItemArrays arrays;
  for (std::int64_t item = 0; item < count; ++item) {
    ItemFields fields{};
    fields.identity = static_cast<std::uintptr_t>(16 + item);
    fields.num_rows = kRows;
    fields.key = key_of(static_cast<std::uint64_t>(item));
    arrays.add_item(fields);
    arrays.add_span(kRows * item, kRows, 0, 0);
  }
  arrays.sort_spans();
  return {{{&arrays, 0, kRows * count, 0}}, {}, kRows * count};
}

Destination destination_of(std::int64_t levels, bool on_cuda = false, std::int32_t device = 0) {
  Destination destination{};
  destination.num_tokens = 100;
  destination.width = kHidden * (1 + levels);
  destination.row_bytes = kHidden * 4;
  destination.kind = vitcache::kFloat32;
  destination.planes.assign(static_cast<std::size_t>(1 + levels), {});
  destination.on_cuda = on_cuda;
  destination.device_id = device;
  return destination;
}

Placement placement_of(const StepPlan& plan) {
  Placement placement(true);
  placement.set_runs(plan.runs());
  return placement;
}

void rows_in_the_table_are_sources_and_all_others_are_left() {
  const StepPlan plan = plan_of(4);
  SourceTable table;
  table.set(key_of(0), rows_of(kHidden));
  table.set(key_of(2), rows_of(kHidden));
  table.set(key_of(9), rows_of(kHidden));
  Placement placement = placement_of(plan);
  CHECK((table.add_sources(plan, placement, destination_of(0)) == Numbers{1, 3}));
  CHECK_EQUAL(placement.sources().size(), std::size_t{4});
  CHECK_EQUAL(placement.sources()[2].num_rows, kRows);
  CHECK_EQUAL(placement.sources()[2].row_address(1), 4096 + 7 * kHidden * 4);
  CHECK_EQUAL(placement.sources()[1].num_rows, 0);
}

void rows_of_another_number_width_or_device_are_left() {
  const StepPlan plan = plan_of(5);
  SourceTable table;
  table.set(key_of(0), rows_of(kHidden, kRows - 1));
  table.set(key_of(1), rows_of(2 * kHidden));
  table.set(key_of(2), rows_of(kHidden, kRows, true));
  table.set(key_of(3), rows_of(kHidden, kRows, false, 1));
  table.set(key_of(4), rows_of(kHidden));
  Placement placement = placement_of(plan);
  CHECK((table.add_sources(plan, placement, destination_of(0)) == Numbers{0, 1, 2, 3}));
}

void narrow_rows_are_marked_where_the_destination_has_levels() {
  const StepPlan plan = plan_of(2);
  SourceTable table;
  table.set(key_of(0), rows_of(kHidden));
  table.set(key_of(1), rows_of(2 * kHidden));
  Placement placement = placement_of(plan);
  CHECK(table.add_sources(plan, placement, destination_of(1)).empty());
  CHECK(placement.sources()[0].narrow);
  CHECK(!placement.sources()[1].narrow);
}

void a_key_is_replaced_and_removed() {
  const StepPlan plan = plan_of(1);
  SourceTable table;
  table.set(key_of(0), rows_of(3));
  table.set(key_of(0), rows_of(kHidden));
  CHECK_EQUAL(table.size(), std::size_t{1});
  Placement placement = placement_of(plan);
  CHECK(table.add_sources(plan, placement, destination_of(0)).empty());
  CHECK(table.remove(key_of(0)));
  CHECK(!table.remove(key_of(0)));
  CHECK_EQUAL(table.size(), std::size_t{0});
  placement = placement_of(plan);
  CHECK((table.add_sources(plan, placement, destination_of(0)) == Numbers{0}));
}

}  // namespace

int main() {
  rows_in_the_table_are_sources_and_all_others_are_left();
  rows_of_another_number_width_or_device_are_left();
  narrow_rows_are_marked_where_the_destination_has_levels();
  a_key_is_replaced_and_removed();
}
