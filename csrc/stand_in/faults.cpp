#include "stand_in/faults.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "runtime/mutex.h"
#include "stand_in/call_record.h"
#include "stand_in/capture.h"
#include "stand_in/entry.h"
#include "stand_in/hooks.h"

namespace vitcache::stand_in {
namespace {

// Control has its own mutex: with a stream's mutex, faults would order work that CUDA does not order.
struct Control {
  Mutex mutex;
  Condition resumed;
  int devices VITCACHE_GUARDED_BY(mutex) = 1;
  bool paused VITCACHE_GUARDED_BY(mutex) = false;
  std::size_t locked_limit VITCACHE_GUARDED_BY(mutex) = std::numeric_limits<std::size_t>::max();
  // By entry point: the number of calls until one fails, and its error.
  std::map<std::string, std::pair<int, int>> failures VITCACHE_GUARDED_BY(mutex);
  int copies_until_failure VITCACHE_GUARDED_BY(mutex) = 0;
  std::atomic<int> delay_us{0};
  std::atomic<bool> any_failure{false};
  std::atomic<bool> any_pause{false};
  std::atomic<bool> lost{false};
  std::atomic<std::uint64_t> synchronizing{0}, copies{0}, copied_bytes{0}, locking_devices{0};
};

// Never destroyed: streams may still run when the process ends.
Control& control() {
  static auto* const instance = new Control;
  return *instance;
}

bool copy_fails() {
  Control& shared = control();
  const Lock lock(shared.mutex);
  if (shared.copies_until_failure == 0) return false;
  --shared.copies_until_failure;
  return shared.copies_until_failure == 0;
}

}  // namespace

int take_failure(const char* entry) {
  Control& shared = control();
  if (!shared.any_failure) return 0;
  const Lock lock(shared.mutex);
  const auto failure = shared.failures.find(entry);
  if (failure == shared.failures.end()) return 0;
  auto& [calls_until_failure, error_to_return] = failure->second;
  --calls_until_failure;
  if (calls_until_failure != 0) return 0;
  const int error = error_to_return;
  shared.failures.erase(failure);
  return error;
}

bool is_lost() { return control().lost; }

int num_devices() {
  Control& shared = control();
  const Lock lock(shared.mutex);
  return shared.devices;
}

std::size_t locked_limit() {
  Control& shared = control();
  const Lock lock(shared.mutex);
  return shared.locked_limit;
}

void wait_while_paused() {
  if (!control().any_pause) return;
  Control& shared = control();
  const Lock lock(shared.mutex);
  while (shared.paused) shared.resumed.wait(shared.mutex);
}

bool begin_copy() {
  Control& shared = control();
  if (shared.lost) return false;
  if (shared.any_failure && copy_fails()) {
    shared.lost = true;
    return false;
  }
  if (const int delay = shared.delay_us; delay > 0)
    std::this_thread::sleep_for(std::chrono::microseconds(delay));
  return true;
}

void count_copy(std::size_t bytes) {
  control().copies.fetch_add(1, std::memory_order_relaxed);
  control().copied_bytes.fetch_add(bytes, std::memory_order_relaxed);
}

void count_synchronizing() { control().synchronizing.fetch_add(1, std::memory_order_relaxed); }

void note_locking(int device) { control().locking_devices.fetch_or(std::uint64_t{1} << device); }

}  // namespace vitcache::stand_in

using vitcache::Lock;
using vitcache::stand_in::Control;
using vitcache::stand_in::control;

EXPORT void vitcache_stand_in_reset() {
  auto& shared = control();
  vitcache_stand_in_pause(0);
  vitcache::stand_in::stop_recording();
  vitcache::stand_in::end_all_captures();
  const Lock lock(shared.mutex);
  shared.devices = 1;
  shared.locked_limit = std::numeric_limits<std::size_t>::max();
  shared.failures.clear();
  shared.copies_until_failure = 0;
  shared.delay_us = 0;
  shared.any_failure = shared.lost = false;
  shared.synchronizing = shared.copies = shared.copied_bytes = shared.locking_devices = 0;
}

EXPORT void vitcache_stand_in_set_devices(int count) {
  Control& shared = control();
  const Lock lock(shared.mutex);
  shared.devices = count;
}

EXPORT void vitcache_stand_in_fail(const char* entry, int nth, int error) {
  Control& shared = control();
  const Lock lock(shared.mutex);
  shared.failures[entry] = {nth, error};
  shared.any_failure = true;
}

EXPORT void vitcache_stand_in_fail_copy(int nth) {
  Control& shared = control();
  const Lock lock(shared.mutex);
  shared.copies_until_failure = nth;
  shared.any_failure = true;
}

EXPORT void vitcache_stand_in_pause(int paused) {
  Control& shared = control();
  const Lock lock(shared.mutex);
  shared.paused = paused != 0;
  shared.any_pause = paused != 0;
  shared.resumed.notify_all();
}

EXPORT void vitcache_stand_in_delay_copies(int microseconds) { control().delay_us = microseconds; }

EXPORT void vitcache_stand_in_limit_locked_bytes(std::size_t bytes) {
  Control& shared = control();
  const Lock lock(shared.mutex);
  shared.locked_limit = bytes;
}

EXPORT vitcache_stand_in_counts vitcache_stand_in_count() {
  const vitcache::stand_in::Alive alive = vitcache::stand_in::count_alive();
  return {
      control().synchronizing, control().copies,         control().copied_bytes, alive.streams, alive.events,
      alive.locked_bytes,      control().locking_devices};
}
