#include "pipeline/source_table.h"

#include <utility>

namespace vitcache {

void SourceTable::set(const Key& key, PagedRows rows) { rows_.insert_or_assign(key, std::move(rows)); }

bool SourceTable::remove(const Key& key) { return rows_.erase(key) > 0; }

std::vector<std::int64_t> SourceTable::add_sources(const StepPlan& plan, Placement& placement,
                                                   const Destination& destination) const {
  std::vector<std::int64_t> left;
  const std::vector<PlannedItem>& items = plan.items();
  placement.resize_sources(static_cast<std::int64_t>(items.size()));
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto item = static_cast<std::int64_t>(i);
    const auto found = items[i].has_key ? rows_.find(items[i].key) : rows_.end();
    if (found == rows_.end() || found->second.source.num_rows != items[i].num_rows ||
        found->second.on_cuda != destination.on_cuda || found->second.device_id != destination.device_id ||
        !placement.fit_source(item, found->second.source, found->second.width, destination))
      left.push_back(item);
  }
  return left;
}

}  // namespace vitcache
