// A model of streams and their fences: which work a fence covers, and which work each page must wait for.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cache/fence.h"
#include "cache/tier.h"
#include "check.h"

constexpr std::int64_t kNumStreams = 4;
constexpr std::int64_t kCopyStream = kNumStreams - 1;

// The number of work items of each stream that are complete at some point.
using Clock = std::array<std::int64_t, kNumStreams>;

inline void merge(Clock& clock, const Clock& other) {
  for (std::size_t stream = 0; stream < clock.size(); ++stream)
    clock[stream] = std::max(clock[stream], other[stream]);
}

inline bool covers(const Clock& clock, const Clock& other) {
  for (std::size_t stream = 0; stream < clock.size(); ++stream)
    if (clock[stream] < other[stream]) return false;
  return true;
}

// One work item of a stream; the work of the CPU is complete at once, so no stream has it.
struct Work {
  std::int64_t stream = vitcache::kCpuStream;
  std::int64_t tick = 0;
};

// The event of a fence is the clock of its stream when it was recorded.
class StreamClocks {
 public:
  vitcache::Fence record(std::int64_t stream) const {
    if (stream == vitcache::kCpuStream) return {};
    return {stream, std::make_shared<Clock>(clocks_[static_cast<std::size_t>(stream)])};
  }

  // Lets a stream, or the CPU, wait. Work that the CPU has waited for is complete for every stream.
  void wait(std::int64_t stream, const vitcache::FenceSet& fences) {
    const Clock covered = covered_by(fences);
    merge(stream == vitcache::kCpuStream ? complete_ : clocks_[static_cast<std::size_t>(stream)], covered);
  }

  Work work(std::int64_t stream) {
    if (stream == vitcache::kCpuStream) return {};
    const auto index = static_cast<std::size_t>(stream);
    return {stream, ++clocks_[index][index]};
  }

  // The work that is complete once `fences` are complete.
  Clock covered_by(const vitcache::FenceSet& fences) const {
    Clock covered = complete_;
    for (const vitcache::Fence& fence : fences.fences())
      merge(covered, *static_cast<const Clock*>(fence.event.get()));
    return covered;
  }

 private:
  std::array<Clock, kNumStreams> clocks_{};
  Clock complete_{};
};

// For each page of a tier: the leases and pending writes that hold it, and the last work on it by stream.
class ShadowPages {
 public:
  explicit ShadowPages(std::int64_t num_pages) : pages_(static_cast<std::size_t>(num_pages)) {}

  void hold(const vitcache::Pages& pages) {
    for (const std::int64_t page : pages) ++at(page).holders;
  }
  void release(const vitcache::Pages& pages) {
    for (const std::int64_t page : pages) CHECK(at(page).holders-- > 0);
  }

  // Holds pages that the ledger handed out: nothing else held them, and no work on them is forgotten.
  void hand_out(const vitcache::Pages& pages, const Clock& covered) {
    for (const std::int64_t page : pages) {
      CHECK_EQUAL(at(page).holders++, 0);
      CHECK(covers(covered, at(page).work));
    }
  }

  void add_work(const vitcache::Pages& pages, const Work& work) {
    if (work.stream == vitcache::kCpuStream) return;
    for (const std::int64_t page : pages) {
      std::int64_t& last = at(page).work[static_cast<std::size_t>(work.stream)];
      last = std::max(last, work.tick);
    }
  }

 private:
  struct Page {
    int holders = 0;
    Clock work{};
  };

  Page& at(std::int64_t page) { return pages_[static_cast<std::size_t>(page)]; }

  std::vector<Page> pages_;
};
