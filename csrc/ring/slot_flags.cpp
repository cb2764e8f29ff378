#include "ring/slot_flags.h"

#include <algorithm>
#include <utility>

namespace vitcache {

SlotFlags::SlotFlags(SharedRuntime runtime)
    : runtime_(std::move(runtime)),
      flags_(static_cast<std::uint32_t*>(runtime_->alloc_host(kCount * sizeof(std::uint32_t)))) {
  std::fill(flags_, flags_ + kCount, 0U);
}

SlotFlags::~SlotFlags() {
  if (getpid() == process_) runtime_->free_host(flags_);
}

}  // namespace vitcache
