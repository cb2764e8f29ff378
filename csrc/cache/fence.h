// A fence: a point of a stream that other streams can wait for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

namespace vitcache {

// The stream of the CPU. Its work is complete when the call that queued it returns, so nothing waits for it.
inline constexpr std::int64_t kCpuStream = -1;

// A recorded point of one stream. `event` is opaque to the core: a caller records it and waits for it.
// Without an event, the fence is always complete.
struct Fence {
  std::int64_t stream = kCpuStream;
  std::shared_ptr<void> event;

  bool is_complete() const { return event == nullptr; }
  bool operator==(const Fence& other) const { return stream == other.stream && event == other.event; }
};

// Fences to wait for, each once. Complete fences are left out.
class FenceSet {
 public:
  void add(const Fence& fence) {
    if (!fence.is_complete() && is_new(fence)) fences_.push_back(fence);
  }

  void add_all(const FenceSet& other) {
    for (const Fence& fence : other.fences_) add(fence);
  }

  void clear() {
    fences_.clear();
    events_.clear();
  }
  bool empty() const { return fences_.empty(); }
  const std::vector<Fence>& fences() const { return fences_; }

 private:
  // The fences of a step that leases many entries are hashed. Most sets are small, and need no hash table.
  static constexpr std::size_t kMostSearched = 8;

  bool is_new(const Fence& fence) {
    if (fences_.size() < kMostSearched)
      return std::find(fences_.begin(), fences_.end(), fence) == fences_.end();
    if (events_.empty())
      for (const Fence& known : fences_) events_.insert(known.event.get());
    return events_.insert(fence.event.get()).second;  // an event is recorded on one stream
  }

  std::vector<Fence> fences_;
  std::unordered_set<const void*> events_;  // of all fences, once they are more than a few
};

}  // namespace vitcache
