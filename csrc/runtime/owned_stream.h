// A stream that is destroyed with this object. In a forked child the destructor does nothing.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <utility>

#include "runtime/cuda_runtime.h"

namespace vitcache {

class OwnedStream {
 public:
  // Throws CudaError.
  OwnedStream(SharedRuntime runtime, int device)
      : runtime_(std::move(runtime)), stream_(runtime_->create_stream(device)) {}
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream() {
    if (getpid() == process_) runtime_->destroy_stream(stream_);
  }

  Stream get() const { return stream_; }

 private:
  SharedRuntime runtime_;
  pid_t process_ = getpid();
  Stream stream_;
};

}  // namespace vitcache
