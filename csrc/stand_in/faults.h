// Controls of the stand-in for the CUDA runtime, for tests: they pause streams, make calls fail, and count
// calls.
//
// Built only with VITCACHE_STAND_IN_FAULTS. The functions are found by name (dlsym, ctypes). Any thread may
// call them; they affect the whole process.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Sets every control and count below to its initial value, and ends a device loss, all
// captures and a record of calls.
// Existing streams, events and page-locked memory are not changed.
void vitcache_stand_in_reset();

void vitcache_stand_in_set_devices(int count);  // initially 1

// The nth call of `entry` from now (1: the next call) fails with `error` and does nothing.
void vitcache_stand_in_fail(const char* entry, int nth, int error);

// The nth copy from now fails when its stream executes it: it copies nothing, and all devices are lost, as
// after an illegal access. Until the reset, queued copies copy nothing, events become complete, and calls
// that use a device fail with 700 (cudaErrorIllegalAddress).
void vitcache_stand_in_fail_copy(int nth);

// While paused, no stream executes work. Calls return as usual.
void vitcache_stand_in_pause(int paused);

// Begins and ends a capture, as cudaStreamBeginCapture and cudaStreamEndCapture do, and returns their errors.
// A stream is named as in calls of CUDA. `mode` is 0 (global), 1 (thread-local) or 2 (relaxed). Instead of a
// graph, the number of captured calls is stored, without records and waits of events. The reset ends all
// captures. capture.h has the rules.
int vitcache_stand_in_begin_capture(void* stream, int mode);
int vitcache_stand_in_end_capture(void* stream, std::uint64_t* captured);

// Each copy takes `microseconds` longer.
void vitcache_stand_in_delay_copies(int microseconds);

// A call that would page-lock more than `bytes` in total fails with 2 (cudaErrorMemoryAllocation).
void vitcache_stand_in_limit_locked_bytes(std::size_t bytes);

struct vitcache_stand_in_counts {
  std::uint64_t synchronizing_calls;  // calls that wait for the device, or may wait, since the reset
  std::uint64_t copies;               // executed since the reset
  std::uint64_t copied_bytes;
  std::uint64_t streams;  // that exist now
  std::uint64_t events;
  std::uint64_t locked_bytes;
  std::uint64_t locking_devices;  // bit d: memory was page-locked while device d was current, since the reset
};
vitcache_stand_in_counts vitcache_stand_in_count();

// A call that queued work, waited, queried, or page-locked memory. Streams and events are numbered from 0 in
// the order in which they first occur in the record. So a sequence of calls can be compared with a list.
struct vitcache_stand_in_call {
  const char* entry;     // its name, such as "cudaEventRecord"
  std::int64_t stream;   // -1: the call has no stream
  const void* handle;    // of the stream, as the caller passed it
  std::int64_t event;    // -1: the call has no event
  std::uint64_t bytes;   // that the call copies or page-locks
  std::uint64_t copies;  // the ranges that the call copies, more than one in a batch or a 2-D copy
};

// Begins an empty record of calls, or ends the record. Calls that fail are not recorded.
void vitcache_stand_in_record_calls(int recording);

// Writes the first `capacity` recorded calls to `calls`, and returns how many calls were recorded.
std::size_t vitcache_stand_in_recorded_calls(vitcache_stand_in_call* calls, std::size_t capacity);

}  // extern "C"
