// Entry points that allocate, free, lock and unlock host memory. A captured graph cannot contain them.
#include <cstdlib>

#include "stand_in/call_record.h"
#include "stand_in/capture.h"
#include "stand_in/entry.h"
#include "stand_in/hooks.h"
#include "stand_in/locked_memory.h"

namespace vitcache::stand_in {

LockedMemory& locked_memory() {
  static auto* const instance = new LockedMemory;  // never destroyed: threads may call when the process ends
  return *instance;
}

namespace {

int begin_host_memory(const char* entry, bool is_freeing) {
  if (const int status = begin(entry, is_freeing); status != kSuccess) return status;
  if (const int status = begin_unsafe_call(); status != kSuccess) return status;
  count_synchronizing();
  return kSuccess;
}

int lock_memory(void* memory, std::size_t bytes) {
  switch (locked_memory().lock(memory, bytes, locked_limit())) {
    case LockedMemory::Result::kLocked:
      note_locking(thread_state().device);
      return kSuccess;
    case LockedMemory::Result::kBeyondLimit:
      return kMemoryAllocation;
    default:
      return kAlreadyRegistered;
  }
}

}  // namespace
}  // namespace vitcache::stand_in

using namespace vitcache::stand_in;

EXPORT int cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  VITCACHE_RETURN_IF_ERROR(begin_host_memory("cudaHostAlloc", false));
  constexpr std::size_t alignment = 4096;
  *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (*memory == nullptr) return result(kMemoryAllocation);
  if (const int status = lock_memory(*memory, bytes); status != kSuccess) {
    std::free(*memory);
    return result(status);
  }
  record_call({"cudaHostAlloc", 0, nullptr, 0, bytes, 0});
  return kSuccess;
}

EXPORT int cudaFreeHost(void* memory) {
  VITCACHE_RETURN_IF_ERROR(begin_host_memory("cudaFreeHost", true));
  if (!locked_memory().unlock(memory)) return result(kInvalidValue);
  std::free(memory);
  record_call({"cudaFreeHost"});
  return kSuccess;
}

EXPORT int cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  VITCACHE_RETURN_IF_ERROR(begin_host_memory("cudaHostRegister", false));
  VITCACHE_RETURN_IF_ERROR(lock_memory(memory, bytes));
  record_call({"cudaHostRegister", 0, nullptr, 0, bytes, 0});
  return kSuccess;
}

EXPORT int cudaHostUnregister(void* memory) {
  VITCACHE_RETURN_IF_ERROR(begin_host_memory("cudaHostUnregister", true));
  if (!locked_memory().unlock(memory)) return result(kNotRegistered);
  record_call({"cudaHostUnregister"});
  return kSuccess;
}
