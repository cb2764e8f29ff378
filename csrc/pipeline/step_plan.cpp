#include "pipeline/step_plan.h"

#include <algorithm>

#include "pipeline/index_table.h"

namespace vitcache {

std::vector<std::int64_t> StepPlan::unkeyed() const {
  std::vector<std::int64_t> found;
  for (std::size_t item = 0; item < items_.size(); ++item)
    if (!items_[item].has_key && !items_[item].has_rows && items_[item].fits)
      found.push_back(static_cast<std::int64_t>(item));
  return found;
}

std::vector<std::int64_t> StepPlan::given() const {
  std::vector<std::int64_t> found;
  for (std::size_t item = 0; item < items_.size(); ++item)
    if (items_[item].has_rows) found.push_back(static_cast<std::int64_t>(item));
  return found;
}

void StepPlan::set_key(std::int64_t item, const Key& key) {
  PlannedItem& planned = items_[static_cast<std::size_t>(item)];
  planned.key = key;
  planned.has_key = true;
}

std::vector<std::int64_t> StepPlan::merge() {
  IndexTable table(items_.size());
  std::vector<std::size_t> equal(items_.size());  // for each item, the first item that is equal to it
  std::vector<std::int64_t> mapping(items_.size());
  std::size_t count = 0;
  for (std::size_t item = 0; item < items_.size(); ++item) {
    const PlannedItem& planned = items_[item];
    equal[item] =
        !planned.has_key
            ? item
            : table.find_or_add(hash_of(planned.key, planned.num_rows), item, [&](std::size_t other) {
                return items_[other].num_rows == planned.num_rows &&
                       items_[other].row_width == planned.row_width && items_[other].key == planned.key;
              });
    mapping[item] = equal[item] == item ? static_cast<std::int64_t>(count++) : mapping[equal[item]];
  }
  if (count == items_.size()) return {};
  for (std::size_t item = 0; item < items_.size(); ++item) {
    const auto target = static_cast<std::size_t>(mapping[item]);
    if (equal[item] == item) {
      items_[target] = items_[item];
      objects_of_[target] = objects_of_[item];
    } else {
      items_[target].needed_rows = std::max(items_[target].needed_rows, items_[item].needed_rows);
      join(objects_of_[target], objects_of_[item]);
    }
  }
  items_.resize(count);
  objects_of_.resize(count);
  for (Object& object : objects_) object.item = static_cast<std::size_t>(mapping[object.item]);
  for (Run& run : runs_) run.item = mapping[static_cast<std::size_t>(run.item)];
  return mapping;
}

void StepPlan::read_from_start(const std::vector<std::int64_t>& items) {
  std::vector<bool> is_chosen(items_.size());
  for (const std::int64_t item : items) {
    is_chosen[static_cast<std::size_t>(item)] = true;
    items_[static_cast<std::size_t>(item)].needed_rows = 0;
  }
  for (Run& run : runs_) {
    if (!is_chosen[static_cast<std::size_t>(run.item)]) continue;
    PlannedItem& planned = items_[static_cast<std::size_t>(run.item)];
    planned.needed_rows = std::max(planned.needed_rows, run.length);
    run.source_start = 0;
  }
}

void StepPlan::join(ObjectList& into, const ObjectList& from) {
  std::size_t mine = into.first;
  std::size_t other = from.first;
  std::size_t* link = &into.first;
  while (mine != kNone && other != kNone) {
    std::size_t& next = mine < other ? mine : other;
    *link = next;
    link = &objects_[next].next;
    next = *link;
  }
  *link = mine != kNone ? mine : other;
  into.last = std::max(into.last, from.last);
}

Occurrence StepPlan::occurrence(std::int64_t item) const {
  return occurrences_[objects_[objects_of(item).first].first_occurrence].place;
}

std::vector<Occurrence> StepPlan::occurrences(std::int64_t item) const {
  std::vector<Occurrence> found;
  for (std::size_t object = objects_of(item).first; object != kNone; object = objects_[object].next)
    for (std::size_t at = objects_[object].first_occurrence; at != kNone; at = occurrences_[at].next)
      found.push_back(occurrences_[at].place);
  return found;
}

std::vector<Occurrence> StepPlan::duplicates(std::int64_t item) const {
  std::vector<Occurrence> found;
  const std::size_t first = objects_of(item).first;
  for (std::size_t object = objects_[first].next; object != kNone; object = objects_[object].next)
    found.push_back(occurrences_[objects_[object].first_occurrence].place);
  return found;
}

}  // namespace vitcache
