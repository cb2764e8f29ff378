// Entry points of events.
#include <map>
#include <memory>
#include <utility>

#include "runtime/mutex.h"
#include "stand_in/call_record.h"
#include "stand_in/capture.h"
#include "stand_in/entry.h"
#include "stand_in/hooks.h"
#include "stand_in/stream_table.h"

namespace vitcache::stand_in {
namespace {

struct Events {
  Mutex mutex;
  std::map<void*, std::shared_ptr<Event>> by_handle VITCACHE_GUARDED_BY(mutex);
};

// Never destroyed: streams may still run when the process ends.
Events& events() {
  static auto* const instance = new Events;
  return *instance;
}

}  // namespace

std::shared_ptr<Event> find_event(void* handle) {
  Events& all = events();
  const Lock lock(all.mutex);
  const auto found = all.by_handle.find(handle);
  return found == all.by_handle.end() ? nullptr : found->second;
}

std::size_t num_events() {
  Events& all = events();
  const Lock lock(all.mutex);
  return all.by_handle.size();
}

}  // namespace vitcache::stand_in

using namespace vitcache::stand_in;

EXPORT int cudaEventCreateWithFlags(void** event, unsigned) {
  BEGIN("cudaEventCreateWithFlags");
  auto created = std::make_shared<Event>(thread_state().device);
  *event = created.get();
  Events& all = events();
  const vitcache::Lock lock(all.mutex);
  all.by_handle.emplace(created.get(), std::move(created));
  return kSuccess;
}

EXPORT int cudaEventDestroy(void* event) {
  BEGIN("cudaEventDestroy", true);
  Events& all = events();
  const vitcache::Lock lock(all.mutex);
  return result(all.by_handle.erase(event) == 1 ? kSuccess : kInvalidHandle);
}

EXPORT int cudaEventRecord(void* event, void* stream) {
  BEGIN("cudaEventRecord");
  Stream* found = find_stream(stream);
  const std::shared_ptr<Event> recorded = find_event(event);
  if (found == nullptr || recorded == nullptr) return result(kInvalidHandle);
  if (found->device() != recorded->device()) return result(kInvalidHandle);
  const Use use = begin_record(*recorded, *found);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaEventRecord", found->serial(), stream, recorded->serial()});
  if (use.is_captured) return kSuccess;
  auto completion = std::make_shared<Completion>();
  stream_table().push(*found, [completion] { completion->complete(); });
  recorded->set(std::move(completion));
  return kSuccess;
}

EXPORT int cudaEventQuery(void* event) {
  BEGIN("cudaEventQuery");
  const std::shared_ptr<Event> queried = find_event(event);
  if (queried == nullptr) return result(kInvalidHandle);
  VITCACHE_RETURN_IF_ERROR(begin_using(*queried));
  VITCACHE_RETURN_IF_ERROR(begin_unsafe_call());
  record_call({"cudaEventQuery", 0, nullptr, queried->serial()});
  const std::shared_ptr<Completion> completion = queried->get();
  if (completion != nullptr && !completion->query()) return result(kNotReady);
  return result(is_lost() ? kIllegalAddress : kSuccess);
}

EXPORT int cudaEventSynchronize(void* event) {
  BEGIN("cudaEventSynchronize");
  const std::shared_ptr<Event> awaited = find_event(event);
  if (awaited == nullptr) return result(kInvalidHandle);
  VITCACHE_RETURN_IF_ERROR(begin_using(*awaited));
  VITCACHE_RETURN_IF_ERROR(begin_unsafe_call());
  count_synchronizing();
  record_call({"cudaEventSynchronize", 0, nullptr, awaited->serial()});
  if (const std::shared_ptr<Completion> completion = awaited->get(); completion != nullptr)
    completion->wait();
  return result(is_lost() ? kIllegalAddress : kSuccess);
}
