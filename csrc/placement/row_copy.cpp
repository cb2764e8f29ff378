#include "placement/row_copy.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

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
  } catch (const std::system_error&) {
    work(count * part / parts, count);  // no further thread can be started: the calling thread does the rest
  }
  work(0, count / parts);
  for (std::thread& thread : threads) thread.join();
}

// Writes `num_rows` rows, contiguous in memory, to adjacent tokens. If the destination is contiguous, too,
// this is one copy, which is faster than one copy per row.
void copy_rows(const std::byte* source, std::int64_t token, std::int64_t num_rows,
               const std::vector<Plane>& planes, std::size_t row_bytes, CopyBytes copy) {
  if (planes.size() == 1 && planes[0].row_stride == static_cast<std::int64_t>(row_bytes)) {
    copy(planes[0].base + token * planes[0].row_stride, source,
         row_bytes * static_cast<std::size_t>(num_rows));
    return;
  }
  for (const std::int64_t end = token + num_rows; token < end; ++token)
    for (const Plane& plane : planes) {
      copy(plane.base + token * plane.row_stride, source, row_bytes);
      source += row_bytes;
    }
}

const std::byte* at(std::int64_t address) { return reinterpret_cast<const std::byte*>(address); }

}  // namespace

void scatter_rows(const std::int64_t* table, std::int64_t num_rows, const std::vector<Plane>& planes,
                  std::int64_t row_bytes, int num_threads) {
  const auto bytes = static_cast<std::size_t>(row_bytes);
  const std::int64_t source_bytes = row_bytes * static_cast<std::int64_t>(planes.size());
  const std::int64_t total = num_rows * source_bytes;
  const CopyBytes copy = copy_for(total);
  in_parallel(num_rows, total, num_threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last;) {
      const std::int64_t address = table[2 * row], token = table[2 * row + 1];
      std::int64_t length = 1;
      while (row + length < last && table[2 * (row + length)] == address + length * source_bytes &&
             table[2 * (row + length) + 1] == token + length)
        ++length;
      copy_rows(at(address), token, length, planes, bytes, copy);
      row += length;
    }
    order_stores();
  });
}

template <typename Id>
void embed_rows(const std::int64_t* table, std::int64_t num_tokens, const Id* ids, const Weight& weight,
                const std::vector<Plane>& planes, std::int64_t row_bytes, int num_threads) {
  const auto bytes = static_cast<std::size_t>(row_bytes);
  const std::int64_t source_bytes = row_bytes * static_cast<std::int64_t>(planes.size());
  const std::int64_t total = num_tokens * source_bytes;
  in_parallel(num_tokens, total, num_threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t token = first; token < last; ++token) {
      if (table[token] != 0) {
        std::int64_t length = 1;
        while (token + length < last && table[token + length] == table[token] + length * source_bytes)
          ++length;
        copy_rows(at(table[token]), token, length, planes, bytes, copy_cached);
        token += length - 1;
        continue;
      }
      copy_cached(planes[0].base + token * planes[0].row_stride, weight.base + ids[token] * weight.row_stride,
                  bytes);
      for (std::size_t level = 1; level < planes.size(); ++level)
        std::memset(planes[level].base + token * planes[level].row_stride, 0, bytes);
    }
  });
}

template void embed_rows(const std::int64_t*, std::int64_t, const std::int32_t*, const Weight&,
                         const std::vector<Plane>&, std::int64_t, int);
template void embed_rows(const std::int64_t*, std::int64_t, const std::int64_t*, const Weight&,
                         const std::vector<Plane>&, std::int64_t, int);

}  // namespace vitcache
