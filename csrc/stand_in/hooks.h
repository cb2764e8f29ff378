// What the stand-in asks as it works: whether a call or a copy is to fail, whether streams stand still.
//
// Built with VITCACHE_STAND_IN_FAULTS, as for tests, faults.cpp answers. Without it, as in a wheel, nothing
// is ever stopped, fails or is counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace vitcache::stand_in {

// Streams and events, and bytes of page-locked memory. The runtime counts them.
struct Alive {
  std::uint64_t streams;
  std::uint64_t events;
  std::uint64_t locked_bytes;
};
Alive count_alive();

#ifdef VITCACHE_STAND_IN_FAULTS

int take_failure(const char* entry);  // the error that this call of an entry point fails with; 0: none
bool is_lost();                       // whether a copy has failed, and the device with it
void* captured_stream();
int num_devices();
std::size_t locked_limit();  // bytes that can be page-locked
void wait_while_paused();    // in the thread of a stream, before each piece of its work
bool begin_copy();           // whether a copy is to be done; may take its time
void count_copy(std::size_t bytes);
void count_synchronizing();     // a call that waits for the device, or may
void note_locking(int device);  // memory was page-locked while this device was current

#else

inline int take_failure(const char*) { return 0; }
inline bool is_lost() { return false; }
inline void* captured_stream() { return nullptr; }
inline int num_devices() { return 1; }
inline std::size_t locked_limit() { return std::numeric_limits<std::size_t>::max(); }
inline void wait_while_paused() {}
inline bool begin_copy() { return true; }
inline void count_copy(std::size_t) {}
inline void count_synchronizing() {}
inline void note_locking(int) {}

#endif

}  // namespace vitcache::stand_in
