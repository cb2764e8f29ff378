#include "stand_in/locked_memory.h"

#include <iterator>

namespace vitcache::stand_in {

LockedMemory::Result LockedMemory::lock(const void* memory, std::size_t bytes, std::size_t limit) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const Lock lock(mutex_);
  if (bytes_ + bytes > limit) return Result::kBeyondLimit;
  const auto next = ranges_.lower_bound(address);
  if (next != ranges_.end() && next->first < address + bytes) return Result::kOverlaps;
  if (next != ranges_.begin() && std::prev(next)->first + std::prev(next)->second > address)
    return Result::kOverlaps;
  ranges_.emplace(address, bytes);
  bytes_ += bytes;
  return Result::kLocked;
}

bool LockedMemory::unlock(const void* memory) {
  const Lock lock(mutex_);
  const auto found = ranges_.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == ranges_.end()) return false;
  bytes_ -= found->second;
  ranges_.erase(found);
  return true;
}

bool LockedMemory::contains(const void* memory, std::size_t bytes) const {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const Lock lock(mutex_);
  auto found = ranges_.upper_bound(address);
  if (found == ranges_.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second;
}

std::size_t LockedMemory::bytes() const {
  const Lock lock(mutex_);
  return bytes_;
}

}  // namespace vitcache::stand_in
