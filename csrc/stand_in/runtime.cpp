// A stand-in for the CUDA runtime, for machines without a GPU. It is a library with the same entry points.
// Its streams are threads, and its device memory is host memory. The code for a GPU runs on it unchanged, so
// that sanitizers can check that code.
//
// It orders only the work that CUDA orders: by one stream, by events, by a stream's wait for a value, and by
// the legacy stream (stream_table.h). So ThreadSanitizer reports a copy that reads a slot before the slot is
// full.
//
// As in CUDA, streams and events belong to the device that was current when they were created. An event can
// be recorded only on streams of its own device. Streams of any device may wait for it.
//
// This file has the entry points that queue work: copies, functions of the host, and waits for a value.
#include <chrono>
#include <cstdint>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>

#include "ring/stream_copy.h"
#include "stand_in/call_record.h"
#include "stand_in/capture.h"
#include "stand_in/entry.h"
#include "stand_in/hooks.h"
#include "stand_in/stream_table.h"

namespace {

using namespace vitcache::stand_in;

constexpr std::chrono::microseconds kNap{20};

void run_copy(void* destination, const void* source, std::size_t bytes) {
  if (!begin_copy()) return;
  vitcache::stream_copy(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes);
  vitcache::order_stores();
  count_copy(bytes);
}

void push_copy(Stream& stream, void* destination, const void* source, std::size_t bytes) {
  // If neither memory is page-locked, CUDA copies through a buffer of its own, and the call waits.
  if (!locked_memory().contains(source, bytes) && !locked_memory().contains(destination, bytes))
    count_synchronizing();
  stream_table().push(stream, [=] { run_copy(destination, source, bytes); });
}

void run_wait_value(const std::uint32_t* address, std::uint32_t value) {
  while (static_cast<std::int32_t>(__atomic_load_n(address, __ATOMIC_ACQUIRE) - value) < 0) {
    if (is_lost()) return;
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace

EXPORT int cudaMemcpyAsync(void* destination, const void* source, std::size_t bytes, int, void* stream) {
  BEGIN("cudaMemcpyAsync");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  const Use use = begin_work(*found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaMemcpyAsync", found->serial(), stream, 0, bytes, 1});
  if (!use.is_captured) push_copy(*found, destination, source, bytes);
  return kSuccess;
}

EXPORT int cudaMemcpy2DAsync(void* destination, std::size_t pitch, const void* source,
                             std::size_t source_pitch, std::size_t width, std::size_t height, int,
                             void* stream) {
  BEGIN("cudaMemcpy2DAsync");
  if (pitch < width || source_pitch < width) return result(kInvalidPitch);
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  if (width == 0 || height == 0) return kSuccess;
  const Use use = begin_work(*found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaMemcpy2DAsync", found->serial(), stream, 0, width * height, height});
  if (use.is_captured) return kSuccess;
  auto* target = static_cast<std::byte*>(destination);
  const auto* rows = static_cast<const std::byte*>(source);
  if (!locked_memory().contains(rows, (height - 1) * source_pitch + width) &&
      !locked_memory().contains(target, (height - 1) * pitch + width))
    count_synchronizing();
  stream_table().push(*found, [=] {
    if (!begin_copy()) return;
    for (std::size_t row = 0; row < height; ++row)
      vitcache::stream_copy(target + row * pitch, rows + row * source_pitch, width);
    vitcache::order_stores();
    count_copy(width * height);
  });
  return kSuccess;
}

// As in CUDA, a batch cannot be queued on the legacy stream.
EXPORT int cudaMemcpyBatchAsync(void* const* destinations, const void* const* sources,
                                const std::size_t* bytes, std::size_t count, void*, std::size_t*, std::size_t,
                                void* stream) {
  BEGIN("cudaMemcpyBatchAsync");
  Stream* found = find_stream(stream);
  if (found == nullptr || found->kind() == Stream::Kind::kLegacy) return result(kInvalidHandle);
  const Use use = begin_work(*found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaMemcpyBatchAsync", found->serial(), stream, 0,
               std::accumulate(bytes, bytes + count, std::uint64_t{0}), count});
  if (use.is_captured) return kSuccess;
  for (std::size_t i = 0; i < count; ++i) push_copy(*found, destinations[i], sources[i], bytes[i]);
  return kSuccess;
}

EXPORT int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  BEGIN("cudaLaunchHostFunc");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  const Use use = begin_work(*found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaLaunchHostFunc", found->serial(), stream});
  if (!use.is_captured) stream_table().push(*found, [=] { function(data); });
  return kSuccess;
}

EXPORT int cuStreamWaitValue32_v2(void* stream, unsigned long long address, std::uint32_t value, unsigned) {
  BEGIN("cuStreamWaitValue32_v2");
  if (!thread_state().has_context) return result(kInvalidContext);
  Stream* found = find_stream(stream);
  const auto* awaited = reinterpret_cast<const std::uint32_t*>(address);
  if (found == nullptr || !locked_memory().contains(awaited, sizeof *awaited)) return result(kInvalidValue);
  const Use use = begin_work(*found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cuStreamWaitValue32_v2", found->serial(), stream});
  if (!use.is_captured) stream_table().push(*found, [awaited, value] { run_wait_value(awaited, value); });
  return kSuccess;
}
