#include "stand_in/call_record.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <vector>

#include "runtime/mutex.h"
#include "stand_in/entry.h"
#include "stand_in/faults.h"

namespace vitcache::stand_in {
namespace {

struct Record {
  std::atomic<bool> is_on{false};
  Mutex mutex;
  std::vector<vitcache_stand_in_call> calls VITCACHE_GUARDED_BY(mutex);
  // Serial numbers to numbers in the order of the first recorded call, which do not depend on earlier tests.
  std::map<std::uint64_t, std::int64_t> streams VITCACHE_GUARDED_BY(mutex);
  std::map<std::uint64_t, std::int64_t> events VITCACHE_GUARDED_BY(mutex);
};

// Never destroyed: threads may still call when the process ends.
Record& record() {
  static auto* const instance = new Record;
  return *instance;
}

std::int64_t number_of(std::map<std::uint64_t, std::int64_t>& numbers, std::uint64_t serial) {
  if (serial == 0) return -1;
  return numbers.emplace(serial, static_cast<std::int64_t>(numbers.size())).first->second;
}

}  // namespace

void record_call(const Call& call) {
  Record& shared = record();
  if (!shared.is_on) return;
  const Lock lock(shared.mutex);
  if (!shared.is_on) return;
  shared.calls.push_back({call.entry, number_of(shared.streams, call.stream), call.handle,
                          number_of(shared.events, call.event), call.bytes, call.copies});
}

void stop_recording() { record().is_on = false; }

}  // namespace vitcache::stand_in

EXPORT void vitcache_stand_in_record_calls(int recording) {
  vitcache::stand_in::Record& shared = vitcache::stand_in::record();
  const vitcache::Lock lock(shared.mutex);
  if (recording != 0) {
    shared.calls.clear();
    shared.streams.clear();
    shared.events.clear();
  }
  shared.is_on = recording != 0;
}

EXPORT std::size_t vitcache_stand_in_recorded_calls(vitcache_stand_in_call* calls, std::size_t capacity) {
  vitcache::stand_in::Record& shared = vitcache::stand_in::record();
  const vitcache::Lock lock(shared.mutex);
  std::copy_n(shared.calls.begin(), std::min(capacity, shared.calls.size()), calls);
  return shared.calls.size();
}
