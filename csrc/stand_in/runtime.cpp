// A stand-in for the CUDA runtime, for machines without a GPU. It is a library with the same entry points.
// Its streams are threads, and its device memory is host memory. The code for a GPU runs on it unchanged, so
// that sanitizers can check that code.
//
// It orders only the work that CUDA orders: by one stream, by events, and by a stream's wait for a value. So
// ThreadSanitizer reports a copy that reads a slot before the slot is full.
//
// As in CUDA, streams and events belong to the device that was current when they were created. An event can
// be recorded only on streams of its own device. Streams of any device may wait for it.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <utility>

#include "ring/stream_copy.h"
#include "runtime/mutex.h"
#include "stand_in/call_record.h"
#include "stand_in/hooks.h"
#include "stand_in/locked_memory.h"
#include "stand_in/stream.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace vitcache::stand_in;
using vitcache::Lock;
using vitcache::Mutex;

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kMemoryAllocation = 2;
constexpr int kInitializationError = 3;
constexpr int kInvalidPitch = 12;
constexpr int kInvalidDevice = 101;
constexpr int kInvalidContext = 201;
constexpr int kInvalidHandle = 400;
constexpr int kNotReady = 600;
constexpr int kIllegalAddress = 700;
constexpr int kAlreadyRegistered = 712;
constexpr int kNotRegistered = 713;
constexpr int kCaptureUnsupported = 900;
constexpr int kCaptureModeRelaxed = 2;
constexpr int kVersion = 13000;
constexpr std::chrono::microseconds kNap{20};

thread_local int last_error = kSuccess;
thread_local int current_device = 0;
thread_local int capture_mode = 0;      // cudaStreamCaptureModeGlobal, the initial mode of a thread
thread_local bool has_context = false;  // calls of the runtime create a context, calls of the driver need one

struct State {
  pid_t process = getpid();
  Mutex mutex;
  std::set<Stream*> streams VITCACHE_GUARDED_BY(mutex);
  std::map<Event*, std::shared_ptr<Event>> events VITCACHE_GUARDED_BY(mutex);
  std::map<int, Stream*> legacy VITCACHE_GUARDED_BY(mutex);  // the default stream of each device
  LockedMemory locked;
};

// Never destroyed: streams may still run when the process ends.
State& state() {
  static auto* const instance = new State;
  return *instance;
}

int result(int status) {
  if (status != kSuccess) last_error = status;
  return status;
}

// Entry points that use the device call it first. Returns the error that the entry point must return, or
// kSuccess. A call that frees something succeeds on a lost device, too.
int begin(const char* entry, bool is_freeing = false) {
  if (getpid() != state().process) return kInitializationError;
  if (const int failure = take_failure(entry); failure != kSuccess) return failure;
  return is_lost() && !is_freeing ? kIllegalAddress : kSuccess;
}

#define BEGIN(...)                                                                        \
  do {                                                                                    \
    if (const int status = begin(__VA_ARGS__); status != kSuccess) return result(status); \
  } while (false)

// Begins a call that CUDA forbids while a graph is captured.
int begin_unsafe(const char* entry, bool is_freeing = false) {
  const int status = begin(entry, is_freeing);
  if (status != kSuccess) return status;
  return captured_stream() != nullptr && capture_mode != kCaptureModeRelaxed ? kCaptureUnsupported : kSuccess;
}

#define BEGIN_UNSAFE(...)                                                                        \
  do {                                                                                           \
    if (const int status = begin_unsafe(__VA_ARGS__); status != kSuccess) return result(status); \
  } while (false)

// The stream of a handle; null if the handle is unknown. The null handle is the default stream of the current
// device.
Stream* find_stream(void* handle) {
  has_context = true;
  State& all = state();
  const Lock lock(all.mutex);
  if (handle == nullptr) {
    Stream*& legacy = all.legacy[current_device];
    if (legacy == nullptr) legacy = new Stream(current_device);
    return legacy;
  }
  const auto found = all.streams.find(static_cast<Stream*>(handle));
  return found == all.streams.end() ? nullptr : *found;
}

std::shared_ptr<Event> find_event(void* handle) {
  State& all = state();
  const Lock lock(all.mutex);
  const auto found = all.events.find(static_cast<Event*>(handle));
  return found == all.events.end() ? nullptr : found->second;
}

int lock_memory(void* memory, std::size_t bytes) {
  switch (state().locked.lock(memory, bytes, locked_limit())) {
    case LockedMemory::Result::kLocked:
      note_locking(current_device);
      return kSuccess;
    case LockedMemory::Result::kBeyondLimit:
      return kMemoryAllocation;
    default:
      return kAlreadyRegistered;
  }
}

void run_copy(void* destination, const void* source, std::size_t bytes) {
  if (!begin_copy()) return;
  vitcache::stream_copy(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes);
  vitcache::order_stores();
  count_copy(bytes);
}

int push_copy(Stream* stream, void* destination, const void* source, std::size_t bytes) {
  // If neither memory is page-locked, CUDA copies through a buffer of its own, and the call waits.
  if (!state().locked.contains(source, bytes) && !state().locked.contains(destination, bytes))
    count_synchronizing();
  stream->push([=] { run_copy(destination, source, bytes); });
  return kSuccess;
}

std::shared_ptr<Completion> push_completion(Stream* stream) {
  auto completion = std::make_shared<Completion>();
  stream->push([completion] { completion->complete(); });
  return completion;
}

void run_wait_value(const std::uint32_t* address, std::uint32_t value) {
  while (static_cast<std::int32_t>(__atomic_load_n(address, __ATOMIC_ACQUIRE) - value) < 0) {
    if (is_lost()) return;
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace

vitcache::stand_in::Alive vitcache::stand_in::count_alive() {
  State& all = state();
  const Lock lock(all.mutex);
  return {all.streams.size(), all.events.size(), all.locked.bytes()};
}

EXPORT const char* cudaGetErrorName(int error) {
  switch (error) {
    case kSuccess:
      return "cudaSuccess";
    case kInvalidValue:
      return "cudaErrorInvalidValue";
    case kMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case kInitializationError:
      return "cudaErrorInitializationError";
    case kInvalidPitch:
      return "cudaErrorInvalidPitchValue";
    case kInvalidDevice:
      return "cudaErrorInvalidDevice";
    case kInvalidHandle:
      return "cudaErrorInvalidResourceHandle";
    case kNotReady:
      return "cudaErrorNotReady";
    case kIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaErrorInjected";
  }
}

EXPORT const char* cudaGetErrorString(int) { return "error of the stand-in for the CUDA runtime"; }

EXPORT int cudaGetLastError() { return std::exchange(last_error, kSuccess); }

EXPORT int cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return kSuccess;
}

EXPORT int cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return kSuccess;
}

EXPORT int cudaGetDeviceCount(int* count) {
  BEGIN("cudaGetDeviceCount");
  *count = num_devices();
  return kSuccess;
}

namespace {

bool has_device(int device) { return device >= 0 && device < num_devices(); }

}  // namespace

EXPORT int cudaGetDeviceProperties(void* properties, int device) {
  BEGIN("cudaGetDeviceProperties");
  if (!has_device(device)) return result(kInvalidDevice);
  std::snprintf(static_cast<char*>(properties), 256, "stand-in %d", device);
  return kSuccess;
}

// Knows only the two attributes of the compute capability, which is 9.`device`.
EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  BEGIN("cudaDeviceGetAttribute");
  if (!has_device(device)) return result(kInvalidDevice);
  *value = attribute == 75 ? 9 : device;
  return kSuccess;
}

EXPORT int cudaGetDevice(int* device) {
  BEGIN("cudaGetDevice");
  *device = current_device;
  return kSuccess;
}

EXPORT int cudaSetDevice(int device) {
  BEGIN("cudaSetDevice");
  if (!has_device(device)) return result(kInvalidDevice);
  current_device = device;
  has_context = true;
  return kSuccess;
}

EXPORT int cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  BEGIN_UNSAFE("cudaHostAlloc");
  count_synchronizing();
  constexpr std::size_t alignment = 4096;
  *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (*memory == nullptr) return result(kMemoryAllocation);
  const int status = lock_memory(*memory, bytes);
  if (status != kSuccess)
    std::free(*memory);
  else
    record_call({"cudaHostAlloc", 0, nullptr, 0, bytes, 0});
  return result(status);
}

EXPORT int cudaFreeHost(void* memory) {
  BEGIN_UNSAFE("cudaFreeHost", true);
  count_synchronizing();
  if (!state().locked.unlock(memory)) return result(kInvalidValue);
  std::free(memory);
  record_call({"cudaFreeHost"});
  return kSuccess;
}

EXPORT int cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  BEGIN_UNSAFE("cudaHostRegister");
  count_synchronizing();
  const int status = lock_memory(memory, bytes);
  if (status == kSuccess) record_call({"cudaHostRegister", 0, nullptr, 0, bytes, 0});
  return result(status);
}

EXPORT int cudaHostUnregister(void* memory) {
  BEGIN_UNSAFE("cudaHostUnregister", true);
  count_synchronizing();
  if (!state().locked.unlock(memory)) return result(kNotRegistered);
  record_call({"cudaHostUnregister"});
  return kSuccess;
}

EXPORT int cudaStreamCreateWithFlags(void** stream, unsigned) {
  BEGIN("cudaStreamCreateWithFlags");
  auto* created = new Stream(current_device);
  State& all = state();
  const Lock lock(all.mutex);
  all.streams.insert(created);
  *stream = created;
  return kSuccess;
}

EXPORT int cudaStreamDestroy(void* stream) {
  BEGIN("cudaStreamDestroy", true);
  State& all = state();
  const Lock lock(all.mutex);
  const auto found = all.streams.find(static_cast<Stream*>(stream));
  if (found == all.streams.end()) return result(kInvalidHandle);
  (*found)->finish();
  all.streams.erase(found);
  return kSuccess;
}

EXPORT int cudaStreamSynchronize(void* stream) {
  BEGIN_UNSAFE("cudaStreamSynchronize");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  count_synchronizing();
  record_call({"cudaStreamSynchronize", found->serial(), stream});
  push_completion(found)->wait();
  return result(is_lost() ? kIllegalAddress : kSuccess);
}

EXPORT int cudaStreamIsCapturing(void* stream, int* status) {
  BEGIN("cudaStreamIsCapturing");
  if (find_stream(stream) == nullptr) return result(kInvalidHandle);
  *status = stream != nullptr && captured_stream() == stream ? 1 : 0;
  return kSuccess;
}

EXPORT int cudaThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(capture_mode, *mode);
  return kSuccess;
}

EXPORT int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  BEGIN("cudaStreamWaitEvent");
  Stream* found = find_stream(stream);
  const std::shared_ptr<Event> awaited = find_event(event);
  if (found == nullptr || awaited == nullptr) return result(kInvalidHandle);
  record_call({"cudaStreamWaitEvent", found->serial(), stream, awaited->serial()});
  if (const std::shared_ptr<Completion> completion = awaited->get(); completion != nullptr)
    found->push([completion] { completion->wait(); });
  return kSuccess;
}

EXPORT int cudaEventCreateWithFlags(void** event, unsigned) {
  BEGIN("cudaEventCreateWithFlags");
  auto created = std::make_shared<Event>(current_device);
  *event = created.get();
  State& all = state();
  const Lock lock(all.mutex);
  all.events.emplace(created.get(), std::move(created));
  return kSuccess;
}

EXPORT int cudaEventDestroy(void* event) {
  BEGIN("cudaEventDestroy", true);
  State& all = state();
  const Lock lock(all.mutex);
  return result(all.events.erase(static_cast<Event*>(event)) == 1 ? kSuccess : kInvalidHandle);
}

EXPORT int cudaEventRecord(void* event, void* stream) {
  BEGIN("cudaEventRecord");
  Stream* found = find_stream(stream);
  const std::shared_ptr<Event> recorded = find_event(event);
  if (found == nullptr || recorded == nullptr) return result(kInvalidHandle);
  if (found->device() != recorded->device()) return result(kInvalidHandle);
  record_call({"cudaEventRecord", found->serial(), stream, recorded->serial()});
  recorded->set(push_completion(found));
  return kSuccess;
}

EXPORT int cudaEventQuery(void* event) {
  BEGIN_UNSAFE("cudaEventQuery");
  const std::shared_ptr<Event> queried = find_event(event);
  if (queried == nullptr) return result(kInvalidHandle);
  record_call({"cudaEventQuery", 0, nullptr, queried->serial()});
  const std::shared_ptr<Completion> completion = queried->get();
  if (completion != nullptr && !completion->query()) return result(kNotReady);
  return result(is_lost() ? kIllegalAddress : kSuccess);
}

EXPORT int cudaEventSynchronize(void* event) {
  BEGIN_UNSAFE("cudaEventSynchronize");
  const std::shared_ptr<Event> awaited = find_event(event);
  if (awaited == nullptr) return result(kInvalidHandle);
  count_synchronizing();
  record_call({"cudaEventSynchronize", 0, nullptr, awaited->serial()});
  if (const std::shared_ptr<Completion> completion = awaited->get(); completion != nullptr)
    completion->wait();
  return result(is_lost() ? kIllegalAddress : kSuccess);
}

EXPORT int cudaMemcpyAsync(void* destination, const void* source, std::size_t bytes, int, void* stream) {
  BEGIN("cudaMemcpyAsync");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  record_call({"cudaMemcpyAsync", found->serial(), stream, 0, bytes, 1});
  return push_copy(found, destination, source, bytes);
}

EXPORT int cudaMemcpy2DAsync(void* destination, std::size_t pitch, const void* source,
                             std::size_t source_pitch, std::size_t width, std::size_t height, int,
                             void* stream) {
  BEGIN("cudaMemcpy2DAsync");
  if (pitch < width || source_pitch < width) return result(kInvalidPitch);
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  if (width == 0 || height == 0) return kSuccess;
  auto* target = static_cast<std::byte*>(destination);
  const auto* rows = static_cast<const std::byte*>(source);
  if (!state().locked.contains(rows, (height - 1) * source_pitch + width) &&
      !state().locked.contains(target, (height - 1) * pitch + width))
    count_synchronizing();
  record_call({"cudaMemcpy2DAsync", found->serial(), stream, 0, width * height, height});
  found->push([=] {
    if (!begin_copy()) return;
    for (std::size_t row = 0; row < height; ++row)
      vitcache::stream_copy(target + row * pitch, rows + row * source_pitch, width);
    vitcache::order_stores();
    count_copy(width * height);
  });
  return kSuccess;
}

EXPORT int cudaMemcpyBatchAsync(void* const* destinations, const void* const* sources,
                                const std::size_t* bytes, std::size_t count, void*, std::size_t*, std::size_t,
                                void* stream) {
  BEGIN("cudaMemcpyBatchAsync");
  Stream* found = stream == nullptr ? nullptr : find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  record_call({"cudaMemcpyBatchAsync", found->serial(), stream, 0,
               std::accumulate(bytes, bytes + count, std::uint64_t{0}), count});
  for (std::size_t i = 0; i < count; ++i) push_copy(found, destinations[i], sources[i], bytes[i]);
  return kSuccess;
}

EXPORT int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  BEGIN("cudaLaunchHostFunc");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  record_call({"cudaLaunchHostFunc", found->serial(), stream});
  found->push([=] { function(data); });
  return kSuccess;
}

EXPORT int cuStreamWaitValue32_v2(void* stream, unsigned long long address, std::uint32_t value, unsigned) {
  BEGIN("cuStreamWaitValue32_v2");
  if (!has_context) return result(kInvalidContext);
  Stream* found = find_stream(stream);
  const auto* awaited = reinterpret_cast<const std::uint32_t*>(address);
  if (found == nullptr || !state().locked.contains(awaited, sizeof *awaited)) return result(kInvalidValue);
  record_call({"cuStreamWaitValue32_v2", found->serial(), stream});
  found->push([awaited, value] { run_wait_value(awaited, value); });
  return kSuccess;
}
