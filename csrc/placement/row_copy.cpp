#include "placement/row_copy.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ring/stream_copy.h"

namespace vitcache {
namespace {

// Starting a thread takes about as long as copying this number of bytes.
constexpr std::int64_t kBytesPerThread = std::int64_t{1} << 20;

// From this size on, `scatter_rows` writes rows with streaming stores, which bypass the CPU's caches.
// `embed_rows` does not: it mostly writes newly allocated memory, whose pages pass through the caches when
// they are first touched.
constexpr std::int64_t kStreamedBytes = std::int64_t{8} << 20;

using CopyBytes = void (*)(std::byte* destination, const std::byte* source, std::size_t bytes);

void copy_cached(std::byte* destination, const std::byte* source, std::size_t bytes) {
  std::memcpy(destination, source, bytes);
}

CopyBytes copy_for(std::int64_t total_bytes) {
  return total_bytes < kStreamedBytes ? copy_cached : stream_copy;
}

// Calls `work(first, last)` for parts of [0, count), each part in a thread of its own.
template <typename Work>
void in_parallel(std::int64_t count, std::int64_t bytes, int num_threads, const Work& work) {
  const std::int64_t parts =
      std::max<std::int64_t>(1, std::min<std::int64_t>({num_threads, bytes / kBytesPerThread, count}));
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(parts - 1));
  std::int64_t part = 1;
  try {
    for (; part < parts; ++part) threads.emplace_back(work, count * part / parts, count * (part + 1) / parts);
  } catch (const std::exception&) {
    // The system refuses a further thread, or memory for it: the calling thread does the rest.
    work(count * part / parts, count);
  }
  work(0, count / parts);
  for (std::thread& thread : threads) thread.join();
}

// The rows of the planes that a row is written to: its token, and its row of the deepstack levels.
struct Target {
  std::int64_t token;
  std::int64_t level_row;

  Target operator+(std::int64_t rows) const { return {token + rows, level_row + rows}; }
};

// The target of row `row` of a run. `rank` is the number of placed tokens before the run.
Target target_of(const Run& run, std::int64_t rank, std::int64_t row, const Destination& destination) {
  return Target{run.start, destination.is_packed() ? rank : run.start} + row;
}

// Writes `num_rows` rows of a source, from the row at `address` on, to adjacent tokens. If the rows are
// contiguous in the source and in the destination, this is one copy, which is faster than one copy per row.
void copy_rows(const Source& source, std::int64_t address, Target target, std::int64_t num_rows,
               const Destination& destination, CopyBytes copy) {
  const std::vector<Plane>& planes = destination.planes;
  const auto bytes = static_cast<std::size_t>(destination.row_bytes);
  const auto first = static_cast<std::uintptr_t>(address);
  if (planes.size() == 1 && planes[0].row_stride == destination.row_bytes &&
      source.row_stride == destination.row_bytes) {
    copy(planes[0].base + target.token * planes[0].row_stride, reinterpret_cast<const std::byte*>(first),
         bytes * static_cast<std::size_t>(num_rows));
    return;
  }
  for (std::int64_t number = 0; number < num_rows; ++number, target = target + 1) {
    const auto* row = reinterpret_cast<const std::byte*>(
        first + static_cast<std::uintptr_t>(number) * static_cast<std::uintptr_t>(source.row_stride));
    copy(planes[0].base + target.token * planes[0].row_stride, row, bytes);
    for (std::size_t level = 1; level < planes.size(); ++level) {
      std::byte* const written = planes[level].base + target.level_row * planes[level].row_stride;
      if (source.narrow)
        std::memset(written, 0, bytes);
      else
        copy(written, row + level * bytes, bytes);
    }
  }
}

// Writes rows [first, first + num_rows) of a run.
void copy_run(const Source& source, const Run& run, std::int64_t rank, std::int64_t first,
              std::int64_t num_rows, const Destination& destination, CopyBytes copy) {
  Target target = target_of(run, rank, first, destination);
  source.visit_parts(run.source_start + first, num_rows, [&](std::int64_t address, std::int64_t count) {
    copy_rows(source, address, target, count, destination, copy);
    target = target + count;
  });
}

// The first token whose id has no row, as several threads find such tokens.
class BadToken {
 public:
  void add(std::int64_t token) {
    std::int64_t found = first_.load(std::memory_order_relaxed);
    while (token < found && !first_.compare_exchange_weak(found, token, std::memory_order_relaxed)) {
    }
  }

  void check(std::int64_t num_embeddings) const {
    const std::int64_t token = first_.load(std::memory_order_relaxed);
    if (token != kNone)
      throw std::out_of_range("input_ids[" + std::to_string(token) +
                              "] was changed during the call to an id outside of " +
                              "the weight, which has " + std::to_string(num_embeddings) + " rows");
  }

 private:
  static constexpr std::int64_t kNone = INT64_MAX;
  std::atomic<std::int64_t> first_{kNone};
};

// Another thread may change the ids behind the caller's check, so each id is read once and compared again.
// Its token is left as it is if the weight has no row for it.
template <typename Id>
void copy_text(const Id* ids, std::int64_t first, std::int64_t last, const TextTokens& text,
               const Destination& destination, BadToken& bad) {
  const std::vector<Plane>& planes = destination.planes;
  const auto bytes = static_cast<std::size_t>(destination.row_bytes);
  for (std::int64_t token = first; token < last; ++token) {
    const std::int64_t id = static_cast<const volatile Id*>(ids)[token];
    if (id < 0 || id >= text.num_embeddings) {
      bad.add(token);
      continue;
    }
    std::memcpy(planes[0].base + token * planes[0].row_stride, text.weight + id * text.row_stride, bytes);
    for (std::size_t level = 1; level < planes.size() && !destination.is_packed(); ++level)
      std::memset(planes[level].base + token * planes[level].row_stride, 0, bytes);
  }
}

std::int64_t source_bytes(const Destination& destination) {
  return destination.row_bytes * static_cast<std::int64_t>(destination.planes.size());
}

}  // namespace

void scatter_rows(const Placement& placement, const Destination& destination, int num_threads) {
  const std::int64_t num_rows = placement.num_rows(destination.kind);
  const std::int64_t total = num_rows * source_bytes(destination);
  if (total == 0) return;
  const CopyBytes copy = copy_for(total);
  const std::vector<std::int64_t> ranks =
      destination.is_packed() ? placement.first_ranks() : std::vector<std::int64_t>(placement.runs().size());
  in_parallel(num_rows, total, num_threads, [&](std::int64_t first, std::int64_t last) {
    std::int64_t row = 0;  // the number of placed rows before the run
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (row >= last) break;
      const Run& run = placement.runs()[i];
      const std::int64_t begin = std::max(first - row, std::int64_t{0});
      const std::int64_t end = std::min(last - row, run.length);
      if (begin < end)
        copy_run(placement.sources()[static_cast<std::size_t>(run.item)], run, ranks[i], begin, end - begin,
                 destination, copy);
      row += run.length;
    }
    order_stores();
  });
}

void embed_rows(const Placement& placement, const Destination& destination, const TextTokens& text,
                int num_threads) {
  const std::int64_t total = destination.num_tokens * source_bytes(destination);
  if (total == 0) return;
  const std::vector<const Run*> runs = placement.runs_in_order();
  BadToken bad;
  text.visit_ids([&](const auto* ids) {
    in_parallel(destination.num_tokens, total, num_threads, [&](std::int64_t first, std::int64_t last) {
      std::int64_t token = first, rank = 0;
      for (const Run* run : runs) {
        const std::int64_t run_rank = rank;
        rank += run->length;
        const std::int64_t begin = std::max(run->start, token);
        const std::int64_t end = std::min(run->start + run->length, last);
        if (run->start >= last) break;
        if (begin >= end) continue;  // another thread writes this run
        copy_text(ids, token, begin, text, destination, bad);
        copy_run(placement.sources()[static_cast<std::size_t>(run->item)], *run, run_rank, begin - run->start,
                 end - begin, destination, copy_cached);
        token = end;
      }
      copy_text(ids, token, last, text, destination, bad);
    });
  });
  bad.check(text.num_embeddings);
}

}  // namespace vitcache
