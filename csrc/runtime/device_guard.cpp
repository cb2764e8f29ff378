#include "runtime/device_guard.h"

#include "runtime/cuda_runtime.h"

namespace vitcache {

DeviceGuard::DeviceGuard(const CudaRuntime& runtime, int device)
    : runtime_(runtime), previous_(runtime.device()), changed_(previous_ != device) {
  runtime_.set_device(device);
}

DeviceGuard::~DeviceGuard() {
  // Tries twice, because one call may fail although the device works. On a lost device both calls fail.
  for (int attempt = 0; changed_ && attempt < 2; ++attempt) {
    try {
      runtime_.set_device(previous_);
      changed_ = false;
    } catch (...) {
    }
  }
}

}  // namespace vitcache
