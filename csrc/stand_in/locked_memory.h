// The page-locked ranges of the stand-in. Ranges do not overlap. Any thread may call any method.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "runtime/mutex.h"

namespace vitcache::stand_in {

class LockedMemory {
 public:
  enum class Result { kLocked, kBeyondLimit, kOverlaps };

  Result lock(const void* memory, std::size_t bytes, std::size_t limit);

  // Returns whether a page-locked range begins at `memory`.
  bool unlock(const void* memory);

  bool contains(const void* memory, std::size_t bytes) const;

  std::size_t bytes() const;

 private:
  mutable Mutex mutex_;
  std::map<std::uintptr_t, std::size_t> ranges_ VITCACHE_GUARDED_BY(mutex_);  // address to bytes
  std::size_t bytes_ VITCACHE_GUARDED_BY(mutex_) = 0;
};

}  // namespace vitcache::stand_in
