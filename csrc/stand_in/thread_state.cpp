#include "stand_in/thread_state.h"

#include <pthread.h>
#include <unistd.h>

#include "stand_in/stream_table.h"

namespace vitcache::stand_in {

ThreadState::ThreadState() : process(getpid()) {}

ThreadState::~ThreadState() {
  if (getpid() != process) return;  // in a forked child the threads of the streams do not exist
  for (const auto& [device, stream] : streams) stream_table().destroy(stream);
}

// Not a thread_local object: glibc frees the thread-local memory of a library that was opened at run time in
// another thread, and ThreadSanitizer reports that as a race with the last use.
ThreadState& thread_state() {
  static const pthread_key_t key = [] {
    pthread_key_t created{};
    pthread_key_create(&created, [](void* state) { delete static_cast<ThreadState*>(state); });
    return created;
  }();
  if (pthread_getspecific(key) == nullptr) pthread_setspecific(key, new ThreadState);
  return *static_cast<ThreadState*>(pthread_getspecific(key));
}

}  // namespace vitcache::stand_in
