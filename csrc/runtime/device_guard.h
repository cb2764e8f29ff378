// Makes a device current in the calling thread for a scope.
#pragma once

#include <optional>

#include "runtime/handles.h"

namespace vitcache {

class CudaRuntime;

class DeviceGuard {
 public:
  // Calls set_device even if `device` is already current: in a new thread that call makes the device's CUDA
  // context current, which functions of the driver need. Throws CudaError; then the current device is
  // unchanged.
  DeviceGuard(const CudaRuntime& runtime, int device);
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  const CudaRuntime& runtime_;
  int previous_;
  bool changed_;
};

// If `stream` is a default stream, makes its device current for a scope. Any other handle identifies its
// stream whichever device is current.
class StreamGuard {
 public:
  StreamGuard(const CudaRuntime& runtime, Stream stream) {
    if (stream.is_of_current_device()) guard_.emplace(runtime, stream.device);
  }

 private:
  std::optional<DeviceGuard> guard_;
};

}  // namespace vitcache
