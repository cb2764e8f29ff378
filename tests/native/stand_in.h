// Opens the stand-in for the CUDA runtime, and finds its controls by name.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "runtime/cuda_runtime.h"
#include "stand_in/faults.h"

namespace stand_in {

template <typename Function>
Function* find(const char* name) {
  static void* const library = dlopen(STAND_IN, RTLD_NOW);
  void* symbol = library == nullptr ? nullptr : dlsym(library, name);
  CHECK(symbol != nullptr);
  return reinterpret_cast<Function*>(symbol);
}

#define VITCACHE_CONTROL(name) stand_in::find<decltype(vitcache_stand_in_##name)>("vitcache_stand_in_" #name)

inline vitcache::SharedRuntime open() {
  return std::make_shared<const vitcache::CudaRuntime>(vitcache::CudaRuntime::open_file(STAND_IN));
}

inline vitcache_stand_in_counts count() { return VITCACHE_CONTROL(count)(); }

// While a Pause exists, streams execute no work.
class Pause {
 public:
  Pause() { VITCACHE_CONTROL(pause)(1); }
  ~Pause() { VITCACHE_CONTROL(pause)(0); }
};

enum CaptureMode { kGlobal, kThreadLocal, kRelaxed };

// Both return the error of the call.
inline int begin_capture(vitcache::Stream stream, CaptureMode mode) {
  return VITCACHE_CONTROL(begin_capture)(stream.handle, mode);
}
inline int end_capture(vitcache::Stream stream, std::uint64_t* captured = nullptr) {
  std::uint64_t number = 0;
  const int status = VITCACHE_CONTROL(end_capture)(stream.handle, &number);
  if (captured != nullptr) *captured = number;
  return status;
}

// cudaStreamCaptureStatus: 0 none, 1 active, 2 invalidated.
inline int capture_status(vitcache::Stream stream) {
  int status = -1;
  CHECK_EQUAL(find<int(void*, int*)>("cudaStreamIsCapturing")(stream.handle, &status), 0);
  return status;
}

// The number of a stream's default handle.
constexpr std::uintptr_t kLegacyHandle = 1, kPerThreadHandle = 2;
inline vitcache::Stream per_thread_stream(int device = 0) {
  return vitcache::Stream(reinterpret_cast<void*>(kPerThreadHandle), device);
}

// A number in page-locked memory. Work that waits for it runs after `open`. The destructor waits until the
// streams of `hold` have read the number.
class Gate {
 public:
  explicit Gate(vitcache::SharedRuntime runtime)
      : runtime_(std::move(runtime)), value_(static_cast<std::uint32_t*>(runtime_->alloc_host(4))) {
    *value_ = 0;
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() {
    open();
    for (const vitcache::Stream stream : held_) runtime_->synchronize_stream(stream);
    runtime_->free_host(value_);
  }

  void hold(vitcache::Stream stream) {
    runtime_->wait_value(stream, value_, 1);
    held_.push_back(stream);
  }
  void open() const { __atomic_store_n(value_, 1U, __ATOMIC_RELEASE); }

 private:
  vitcache::SharedRuntime runtime_;
  std::uint32_t* value_;
  std::vector<vitcache::Stream> held_;
};

}  // namespace stand_in
