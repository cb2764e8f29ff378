// Streams and events of the CUDA runtime as two types, so that code which confuses them does not compile.
//
// Both own nothing and are passed by value. `handle` is the runtime's cudaStream_t or cudaEvent_t.
#pragma once

#include <cstdint>

namespace vitcache {

// A handle identifies a stream only together with a device: null is the default stream of the current device.
struct Stream {
  explicit Stream(void* stream_handle, int stream_device) : handle(stream_handle), device(stream_device) {}

  // Whether the handle is a default stream, which depends on the current device: null, cudaStreamLegacy or
  // cudaStreamPerThread.
  bool is_of_current_device() const { return reinterpret_cast<std::uintptr_t>(handle) <= 2; }

  void* handle;
  int device;
};

struct Event {
  explicit Event(void* event_handle) : handle(event_handle) {}

  void* handle;
};

}  // namespace vitcache
