// Controls of the stand-in for the CUDA runtime, for tests: they pause streams, make calls fail, and count
// calls.
//
// Built only with VITCACHE_STAND_IN_FAULTS. The functions are found by name (dlsym, ctypes). Any thread may
// call them; they affect the whole process.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Sets every control and count below to its initial value, and ends a device loss. Existing streams, events
// and page-locked memory are not changed.
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

// From now on `stream` counts as captured; null ends this. Calls that may wait for the device then fail with
// 900 (cudaErrorStreamCaptureUnsupported), except in threads in the relaxed capture mode.
void vitcache_stand_in_capture(void* stream);

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

}  // extern "C"
