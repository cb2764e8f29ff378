// Streams and events of the CUDA runtime as types: to pass one in the place of the other does not compile.
//
// They own nothing and are passed by value. `handle` is the runtime's cudaStream_t or cudaEvent_t.
#pragma once

namespace vitcache {

// A handle means a stream only together with its device: null is the default stream of whichever device is
// current.
struct Stream {
  void* handle;
  int device;
};

struct Event {
  void* handle;
};

}  // namespace vitcache
