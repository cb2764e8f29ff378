// Entry points that describe errors, versions and devices, and the beginning of every call.
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "stand_in/entry.h"
#include "stand_in/hooks.h"
#include "stand_in/stream_table.h"

namespace vitcache::stand_in {
namespace {

constexpr int kVersion = 13000;

bool has_device(int device) { return device >= 0 && device < num_devices(); }

}  // namespace

int result(int status) {
  if (status != kSuccess) thread_state().last_error = status;
  return status;
}

int begin(const char* entry, bool is_freeing) {
  static const pid_t process = getpid();  // the first process that calls
  if (getpid() != process) return kInitializationError;
  if (const int failure = take_failure(entry); failure != kSuccess) return failure;
  return is_lost() && !is_freeing ? kIllegalAddress : kSuccess;
}

Stream* find_stream(void* handle) {
  thread_state().has_context = true;
  return stream_table().find(handle, thread_state().device);
}

Alive count_alive() { return {stream_table().size(), num_events(), locked_memory().bytes()}; }

}  // namespace vitcache::stand_in

using namespace vitcache::stand_in;

EXPORT const char* cudaGetErrorName(int error) { return error_name(error); }

EXPORT const char* cudaGetErrorString(int) { return "error of the stand-in for the CUDA runtime"; }

EXPORT int cudaGetLastError() { return std::exchange(thread_state().last_error, kSuccess); }

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
  *device = thread_state().device;
  return kSuccess;
}

EXPORT int cudaSetDevice(int device) {
  BEGIN("cudaSetDevice");
  if (!has_device(device)) return result(kInvalidDevice);
  thread_state().device = device;
  thread_state().has_context = true;
  return kSuccess;
}
