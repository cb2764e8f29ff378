// The row kernels for the CPU: functions that read a placement and copy rows as bytes.
//
// Each call returns when all rows are written. At most `num_threads` threads work, the calling thread
// included. A call with few bytes uses only the calling thread. The caller has checked the placement against
// the destination (`Placement::check`); every source is of the destination's kind, and none is stored.
#pragma once

#include "placement/destination.h"
#include "placement/placement.h"

namespace vitcache {

void scatter_rows(const Placement& placement, const Destination& destination, int num_threads);

// Text tokens get the weight's row of their id in the first plane, and zeros in the other planes; packed
// planes have no rows of text tokens. The caller
// has checked the ids (`Placement::check_text_ids`), and the weight is of the destination's kind. Throws
// std::out_of_range if another thread has changed an id since to one that has no row.
void embed_rows(const Placement& placement, const Destination& destination, const TextTokens& text,
                int num_threads);

}  // namespace vitcache
