// Makes a device current in the calling thread for a scope.
#pragma once

#include <optional>

#include "runtime/handles.h"

namespace vitcache {

class CudaRuntime;

class DeviceGuard {
 public:
  // Calls set_device even if `device` is current already: in a new thread that makes its context current,
  // which calls of the driver need. Throws CudaError; the current device has not changed then.
  DeviceGuard(const CudaRuntime& runtime, int device);
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  const CudaRuntime& runtime_;
  int before_;
  bool changed_;
};

// The device of a stream, where its handle means a stream of the current device. Any other handle means one
// stream, whichever device is current.
class StreamGuard {
 public:
  StreamGuard(const CudaRuntime& runtime, Stream stream) {
    if (stream.is_of_current_device()) guard_.emplace(runtime, stream.device);
  }

 private:
  std::optional<DeviceGuard> guard_;
};

}  // namespace vitcache
