// Rows in device pages by key, for callers that hold leases on them over many steps.
//
// Thread rule: as for a std::vector, concurrent calls may only read. Python calls every method under the GIL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "cache/key.h"
#include "pipeline/step_plan.h"
#include "placement/destination.h"
#include "placement/paged_rows.h"
#include "placement/placement.h"

namespace vitcache {

// The table has addresses of pages and does not pin them: the caller removes a key before it releases the
// lease on the rows.
class SourceTable {
 public:
  // Replaces the rows of a key.
  void set(const Key& key, PagedRows rows);

  // Returns false if the table has no rows for the key.
  bool remove(const Key& key);

  std::size_t size() const { return rows_.size(); }

  // Makes the rows in the table the sources of a placement of `plan`: item `i` is source `i`. Returns the
  // items that it leaves to Python: items that the table does not have, and items whose rows have another
  // number than planned, a width that the placement does not take, or another device than the destination.
  std::vector<std::int64_t> add_sources(const StepPlan& plan, Placement& placement,
                                        const Destination& destination) const;

 private:
  std::unordered_map<Key, PagedRows, KeyHash> rows_;
};

}  // namespace vitcache
