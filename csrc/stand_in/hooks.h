// Hooks that the stand-in calls: they make calls and copies fail, pause streams, and count calls.
//
// With VITCACHE_STAND_IN_FAULTS, for tests, faults.cpp defines them. Without it, as in a wheel, they do
// nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace vitcache::stand_in {

// The number of streams and events that exist, and the bytes of page-locked memory. devices.cpp counts them.
struct Alive {
  std::uint64_t streams;
  std::uint64_t events;
  std::uint64_t locked_bytes;
};
Alive count_alive();

#ifdef VITCACHE_STAND_IN_FAULTS

int take_failure(const char* entry);  // the error that this call of `entry` must return; 0: it must not fail
bool is_lost();                       // whether a failed copy has lost the device
int num_devices();
std::size_t locked_limit();  // the most bytes that can be page-locked
void wait_while_paused();    // a stream's thread calls it before each piece of work
bool begin_copy();           // whether the copy must be done; returns after the delay of `delay_copies`
void count_copy(std::size_t bytes);
void count_synchronizing();     // a call waits for the device, or may wait
void note_locking(int device);  // memory was page-locked while this device was current

#else

inline int take_failure(const char*) { return 0; }
inline bool is_lost() { return false; }
inline int num_devices() { return 1; }
inline std::size_t locked_limit() { return std::numeric_limits<std::size_t>::max(); }
inline void wait_while_paused() {}
inline bool begin_copy() { return true; }
inline void count_copy(std::size_t) {}
inline void count_synchronizing() {}
inline void note_locking(int) {}

#endif

}  // namespace vitcache::stand_in
