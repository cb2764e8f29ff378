// The common part of all entry points: how a call begins and returns, and how it finds its arguments.
#pragma once

#include <cstddef>
#include <memory>

#include "stand_in/errors.h"
#include "stand_in/locked_memory.h"
#include "stand_in/stream.h"
#include "stand_in/thread_state.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Returns from an entry point if `status` is an error.
#define VITCACHE_RETURN_IF_ERROR(...)                                             \
  do {                                                                            \
    if (const int status = (__VA_ARGS__); status != vitcache::stand_in::kSuccess) \
      return vitcache::stand_in::result(status);                                  \
  } while (false)

// Begins an entry point that uses the device.
#define BEGIN(...) VITCACHE_RETURN_IF_ERROR(vitcache::stand_in::begin(__VA_ARGS__))

namespace vitcache::stand_in {

// Returns the error that the entry point must return, or kSuccess. A call that frees something succeeds on a
// lost device, too.
int begin(const char* entry, bool is_freeing = false);

// Returns `status`, and stores it as the last error of the thread if it is an error.
int result(int status);

// The stream that `handle` names in the calling thread; null if it names none.
Stream* find_stream(void* handle);

std::shared_ptr<Event> find_event(void* handle);
std::size_t num_events();

// The page-locked memory of this process.
LockedMemory& locked_memory();

}  // namespace vitcache::stand_in
