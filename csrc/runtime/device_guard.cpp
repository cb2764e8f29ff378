#include "runtime/device_guard.h"

#include "runtime/cuda_runtime.h"
#include "runtime/error.h"

namespace vitcache {

DeviceGuard::DeviceGuard(const CudaRuntime& runtime, int device)
    : runtime_(runtime), before_(runtime.device()) {
  runtime_.set_device(device);
  changed_ = before_ != device;
}

DeviceGuard::DeviceGuard(const CudaRuntime& runtime, int device, std::nothrow_t) noexcept
    : runtime_(runtime) {
  try {
    before_ = runtime.device();
    runtime_.set_device(device);
    changed_ = before_ != device;
  } catch (const CudaError&) {  // the device is lost; the call itself will fail, or does not need it
  }
}

DeviceGuard::~DeviceGuard() {
  try {
    if (changed_) runtime_.set_device(before_);
  } catch (const CudaError&) {  // the thread's next call fails, too, and reports it
  }
}

}  // namespace vitcache
