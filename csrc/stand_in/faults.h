// Control of the stand-in for the CUDA runtime, for tests: it is stopped, fails and is counted on demand.
//
// Built with VITCACHE_STAND_IN_FAULTS only. The functions are found by name (dlsym, ctypes). Any thread may
// call them; they act on the whole process.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Everything below as it was at the start; live streams, events and memory stay. Ends a device failure.
void vitcache_stand_in_reset();

void vitcache_stand_in_set_devices(int count);  // at first 1

// The `nth` next call (1: the next) of an entry point fails with `error` and does nothing.
void vitcache_stand_in_fail(const char* entry, int nth, int error);

// The `nth` next copy fails when it is its turn: it copies nothing, and the device is lost, as after an
// illegal access; with several devices, all of them. Work still queued is dropped, events count as passed,
// and calls that use a device fail with 700 until the reset.
void vitcache_stand_in_fail_copy(int nth);

// While paused no stream works; calls return as ever.
void vitcache_stand_in_pause(int paused);

// `stream` is being captured (null: none is): calls that may wait for the device fail with 900, but in
// threads that have asked for the relaxed mode.
void vitcache_stand_in_capture(void* stream);

// Each copy takes so many microseconds longer.
void vitcache_stand_in_delay_copies(int microseconds);

// Page-locking more than so much fails with 2.
void vitcache_stand_in_limit_locked_bytes(std::size_t bytes);

struct vitcache_stand_in_counts {
  std::uint64_t synchronizing_calls;  // that wait for the device, or may, since the reset
  std::uint64_t copies;               // done, since the reset
  std::uint64_t copied_bytes;
  std::uint64_t streams;  // alive
  std::uint64_t events;
  std::uint64_t locked_bytes;
  std::uint64_t locking_devices;  // one bit each: current while memory was page-locked, since the reset
};
vitcache_stand_in_counts vitcache_stand_in_count();

}  // extern "C"
