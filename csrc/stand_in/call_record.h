// The record of the calls of entry points, for tests that compare a sequence of calls.
//
// Only builds with VITCACHE_STAND_IN_FAULTS record calls. The record has a mutex of its own, so a recorded
// thread is ordered after the thread of the previous call: ThreadSanitizer sees fewer races while it is on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vitcache::stand_in {

// A call that succeeded in queueing its work, or in beginning its wait.
struct Call {
  const char* entry;
  std::uint64_t stream = 0;  // the serial number of the stream; 0: the call has no stream
  const void* handle = nullptr;
  std::uint64_t event = 0;   // the serial number of the event; 0: the call has no event
  std::uint64_t bytes = 0;   // that the call copies or page-locks
  std::uint64_t copies = 0;  // the ranges that the call copies: of a batch, or the rows of a 2-D copy
};

#ifdef VITCACHE_STAND_IN_FAULTS

void record_call(const Call& call);
void stop_recording();

#else

inline void record_call(const Call&) {}

#endif

}  // namespace vitcache::stand_in
