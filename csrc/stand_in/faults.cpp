#include "stand_in/faults.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "stand_in/hooks.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace vitcache::stand_in {
namespace {

// Apart from the streams' own locks, which must order nothing else.
struct Control {
  std::mutex mutex;
  std::condition_variable resumed;
  int devices = 1;
  bool paused = false;
  std::size_t locked_limit = std::numeric_limits<std::size_t>::max();
  std::map<std::string, std::pair<int, int>> failures;  // entry point: calls until it fails, error
  int copies_until_failure = 0;
  std::atomic<int> delay_us{0};
  std::atomic<bool> any_failure{false};
  std::atomic<bool> any_pause{false};
  std::atomic<bool> lost{false};
  std::atomic<void*> captured{nullptr};
  std::atomic<std::uint64_t> synchronizing{0}, copies{0}, copied_bytes{0};
};

// Never destroyed: streams may still work when the process ends.
Control& control() {
  static auto* const instance = new Control;
  return *instance;
}

bool copy_fails() {
  const std::lock_guard<std::mutex> lock(control().mutex);
  return control().copies_until_failure > 0 && --control().copies_until_failure == 0;
}

}  // namespace

int take_failure(const char* entry) {
  Control& shared = control();
  if (!shared.any_failure) return 0;
  const std::lock_guard<std::mutex> lock(shared.mutex);
  const auto failure = shared.failures.find(entry);
  if (failure == shared.failures.end() || --failure->second.first != 0) return 0;
  const int error = failure->second.second;
  shared.failures.erase(failure);
  return error;
}

bool is_lost() { return control().lost; }

void* captured_stream() { return control().captured; }

int num_devices() {
  const std::lock_guard<std::mutex> lock(control().mutex);
  return control().devices;
}

std::size_t locked_limit() {
  const std::lock_guard<std::mutex> lock(control().mutex);
  return control().locked_limit;
}

void wait_while_paused() {
  if (!control().any_pause) return;
  std::unique_lock<std::mutex> lock(control().mutex);
  control().resumed.wait(lock, [] { return !control().paused; });
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

}  // namespace vitcache::stand_in

using vitcache::stand_in::control;

EXPORT void vitcache_host_reset() {
  auto& shared = control();
  vitcache_host_pause(0);
  const std::lock_guard<std::mutex> lock(shared.mutex);
  shared.devices = 1;
  shared.locked_limit = std::numeric_limits<std::size_t>::max();
  shared.failures.clear();
  shared.copies_until_failure = 0;
  shared.delay_us = 0;
  shared.any_failure = shared.lost = false;
  shared.captured = nullptr;
  shared.synchronizing = shared.copies = shared.copied_bytes = 0;
}

EXPORT void vitcache_host_set_devices(int count) {
  const std::lock_guard<std::mutex> lock(control().mutex);
  control().devices = count;
}

EXPORT void vitcache_host_fail(const char* entry, int nth, int error) {
  const std::lock_guard<std::mutex> lock(control().mutex);
  control().failures[entry] = {nth, error};
  control().any_failure = true;
}

EXPORT void vitcache_host_fail_copy(int nth) {
  const std::lock_guard<std::mutex> lock(control().mutex);
  control().copies_until_failure = nth;
  control().any_failure = true;
}

EXPORT void vitcache_host_pause(int paused) {
  const std::lock_guard<std::mutex> lock(control().mutex);
  control().paused = paused != 0;
  control().any_pause = paused != 0;
  control().resumed.notify_all();
}

EXPORT void vitcache_host_capture(void* stream) { control().captured = stream; }

EXPORT void vitcache_host_delay_copies(int microseconds) { control().delay_us = microseconds; }

EXPORT void vitcache_host_limit_locked_bytes(std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(control().mutex);
  control().locked_limit = bytes;
}

EXPORT vitcache_host_counts vitcache_host_count() {
  const vitcache::stand_in::Alive alive = vitcache::stand_in::count_alive();
  return {control().synchronizing, control().copies, control().copied_bytes,
          alive.streams,           alive.events,     alive.locked_bytes};
}
