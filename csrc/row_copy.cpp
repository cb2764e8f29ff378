#include "row_copy.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace vitcache {
namespace {

// Starting a thread costs about what copying this much does.
constexpr std::int64_t kBytesPerThread = std::int64_t{1} << 20;

// Calls `work(first, last)` for parts of [0, count), at once.
template <typename Work>
void in_parallel(std::int64_t count, std::int64_t bytes, int num_threads, const Work& work) {
  const std::int64_t parts =
      std::max<std::int64_t>(1, std::min<std::int64_t>({num_threads, bytes / kBytesPerThread, count}));
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(parts - 1));
  std::int64_t begun = 1;
  try {
    for (; begun < parts; ++begun)
      threads.emplace_back(work, count * begun / parts, count * (begun + 1) / parts);
  } catch (const std::system_error&) {
    work(count * begun / parts, count);  // no thread to be had: this one does the rest
  }
  work(0, count / parts);
  for (std::thread& thread : threads) thread.join();
}

void copy_row(const std::byte* source, std::int64_t token, const std::vector<Plane>& planes,
              std::size_t row_bytes) {
  for (const Plane& plane : planes) {
    std::memcpy(plane.base + token * plane.row_stride, source, row_bytes);
    source += row_bytes;
  }
}

const std::byte* at(std::int64_t address) { return reinterpret_cast<const std::byte*>(address); }

}  // namespace

void scatter_rows(const std::int64_t* table, std::int64_t num_rows, const std::vector<Plane>& planes,
                  std::int64_t row_bytes, int num_threads) {
  const auto bytes = static_cast<std::size_t>(row_bytes);
  const std::int64_t total = num_rows * row_bytes * static_cast<std::int64_t>(planes.size());
  in_parallel(num_rows, total, num_threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row)
      copy_row(at(table[2 * row]), table[2 * row + 1], planes, bytes);
  });
}

template <typename Id>
void embed_rows(const std::int64_t* table, std::int64_t num_tokens, const Id* ids, const Weight& weight,
                const std::vector<Plane>& planes, std::int64_t row_bytes, int num_threads) {
  for (std::int64_t token = 0; token < num_tokens; ++token)
    if (table[token] == 0 && (ids[token] < 0 || ids[token] >= weight.num_rows))
      throw std::out_of_range("input_ids[" + std::to_string(token) + "] is " + std::to_string(ids[token]) +
                              ", the weight has " + std::to_string(weight.num_rows) + " rows");
  const auto bytes = static_cast<std::size_t>(row_bytes);
  const std::int64_t total = num_tokens * row_bytes * static_cast<std::int64_t>(planes.size());
  in_parallel(num_tokens, total, num_threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t token = first; token < last; ++token) {
      if (table[token] != 0) {
        copy_row(at(table[token]), token, planes, bytes);
        continue;
      }
      std::memcpy(planes[0].base + token * planes[0].row_stride, weight.base + ids[token] * weight.row_stride,
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
