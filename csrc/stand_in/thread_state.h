// The state that the stand-in keeps for each thread.
#pragma once

#include <sys/types.h>

#include <map>

namespace vitcache::stand_in {

class Stream;

struct ThreadState {
  ThreadState();
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;
  ~ThreadState();

  int last_error = 0;
  int device = 0;                  // the current device
  int capture_mode = 0;            // cudaStreamCaptureModeGlobal, the initial mode of a thread
  bool has_context = false;        // calls of the runtime create a context, calls of the driver need one
  std::map<int, Stream*> streams;  // the thread's default stream of each device
  pid_t process;
};

// The state of the calling thread.
ThreadState& thread_state();

}  // namespace vitcache::stand_in
