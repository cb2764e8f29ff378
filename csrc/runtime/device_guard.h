// Makes a device current in the calling thread for a scope.
#pragma once

#include <new>

namespace vitcache {

class CudaRuntime;

class DeviceGuard {
 public:
  // Calls set_device even if `device` is current already: in a new thread that call creates the CUDA context.
  // Throws CudaError; the current device has not changed then.
  DeviceGuard(const CudaRuntime& runtime, int device);

  // For calls whose handle names its device already, as to destroy or query an event: there the guard only
  // keeps the runtime from creating a context on another device. If the device is lost, the current device
  // stays as it is.
  DeviceGuard(const CudaRuntime& runtime, int device, std::nothrow_t) noexcept;

  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  const CudaRuntime& runtime_;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace vitcache
