// Streams and events of the CUDA runtime as types: to pass one in the place of the other does not compile.
//
// They own nothing and are passed by value. `handle` is the runtime's cudaStream_t or cudaEvent_t.
#pragma once

#include <cstdint>

namespace vitcache {

// A handle means a stream only together with its device: null is the default stream of whichever device is
// current.
struct Stream {
  explicit Stream(void* stream_handle, int stream_device) : handle(stream_handle), device(stream_device) {}

  // Whether the handle names a stream of the current device: null, cudaStreamLegacy or cudaStreamPerThread.
  bool is_of_current_device() const { return reinterpret_cast<std::uintptr_t>(handle) <= 2; }

  void* handle;
  int device;
};

struct Event {
  explicit Event(void* event_handle) : handle(event_handle) {}

  void* handle;
};

}  // namespace vitcache
