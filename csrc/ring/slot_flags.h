// The flags of a ring's slots, in page-locked memory. The host stores a slot's flag when the slot is full,
// and a stream waits for that value before it reads the slot.
//
// Slots are numbered from the construction of the ring. Slot `n` uses flag `n % kCount`. The value of a flag
// increases by one with each slot that uses the flag.
//
// Thread rule: any thread may store and read flags. In a forked child the destructor frees nothing.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "runtime/cuda_runtime.h"

namespace vitcache {

// The flag of one slot, and the value that the flag has when the slot is full.
struct SlotFlag {
  std::uint32_t* address;
  std::uint32_t value;

  // A release store: a thread or stream that reads the value also sees the bytes that were written before the
  // store.
  void store() const { __atomic_store_n(address, value, __ATOMIC_RELEASE); }
  bool is_stored() const { return __atomic_load_n(address, __ATOMIC_ACQUIRE) == value; }
};

class SlotFlags {
 public:
  static constexpr std::uint64_t kCount = 1024;

  // Throws OutOfMemory or CudaError.
  explicit SlotFlags(SharedRuntime runtime);
  SlotFlags(const SlotFlags&) = delete;
  SlotFlags& operator=(const SlotFlags&) = delete;
  ~SlotFlags();

  SlotFlag of(std::uint64_t sequence) const {
    return {flags_ + sequence % kCount, static_cast<std::uint32_t>(sequence / kCount + 1)};
  }

 private:
  SharedRuntime runtime_;
  pid_t process_ = getpid();
  std::uint32_t* flags_;
};

}  // namespace vitcache
