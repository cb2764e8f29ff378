#include "stand_in/stream_table.h"

#include <memory>
#include <utility>

#include "stand_in/thread_state.h"

namespace vitcache::stand_in {
namespace {

constexpr std::uintptr_t kLegacy = 1;     // cudaStreamLegacy
constexpr std::uintptr_t kPerThread = 2;  // cudaStreamPerThread

std::shared_ptr<Completion> push_completion(Stream& stream) {
  auto completion = std::make_shared<Completion>();
  stream.push([completion] { completion->complete(); });
  return completion;
}

void push_wait(Stream& stream, std::shared_ptr<Completion> completion) {
  stream.push([completion = std::move(completion)] { completion->wait(); });
}

}  // namespace

StreamTable& stream_table() {
  static auto* const instance = new StreamTable;
  return *instance;
}

Stream* StreamTable::create(int device, bool is_blocking) {
  const Lock lock(mutex_);
  Stream* const created =
      is_blocking ? create_blocking(device) : new Stream(device, Stream::Kind::kNonBlocking);
  created_.insert(created);
  return created;
}

Stream* StreamTable::create_blocking(int device) {
  auto* const created = new Stream(device, Stream::Kind::kBlocking);
  blocking_.insert(created);
  // Earlier work of the legacy stream precedes all later work of blocking streams, new ones included.
  if (const auto legacy = legacy_.find(device); legacy != legacy_.end())
    push_wait(*created, push_completion(*legacy->second));
  return created;
}

std::uint64_t StreamTable::destroy(void* handle) {
  const Lock lock(mutex_);
  auto* const stream = static_cast<Stream*>(handle);
  const bool was_created = created_.erase(stream) == 1;
  const bool was_blocking = blocking_.erase(stream) == 1;
  if (!was_created && !was_blocking) return 0;
  const std::uint64_t serial = stream->serial();
  stream->finish();
  return serial;
}

Stream* StreamTable::find(void* handle, int device) {
  const auto number = reinterpret_cast<std::uintptr_t>(handle);
  if (number <= kLegacy) return find_legacy(device);
  if (number == kPerThread) return find_per_thread(device);
  const Lock lock(mutex_);
  const auto found = created_.find(static_cast<Stream*>(handle));
  return found == created_.end() ? nullptr : *found;
}

Stream* StreamTable::find_legacy(int device) {
  const Lock lock(mutex_);
  Stream*& legacy = legacy_[device];
  if (legacy == nullptr) legacy = new Stream(device, Stream::Kind::kLegacy);
  return legacy;
}

Stream* StreamTable::find_per_thread(int device) {
  Stream*& stream = thread_state().streams[device];
  if (stream == nullptr) {
    const Lock lock(mutex_);
    stream = create_blocking(device);
  }
  return stream;
}

void StreamTable::push(Stream& stream, std::function<void()> work) {
  if (stream.kind() != Stream::Kind::kLegacy) {
    stream.push(std::move(work));
    return;
  }
  // The mutex is held throughout, so that the set of blocking streams does not change. A stream waits
  // only for work that was queued before the wait, so the waits form no circle.
  const Lock lock(mutex_);
  for (Stream* const blocking : blocking_)
    if (blocking->device() == stream.device()) push_wait(stream, push_completion(*blocking));
  stream.push(std::move(work));
  const std::shared_ptr<Completion> completion = push_completion(stream);
  for (Stream* const blocking : blocking_)
    if (blocking->device() == stream.device()) push_wait(*blocking, completion);
}

std::size_t StreamTable::size() const {
  const Lock lock(mutex_);
  return created_.size();
}

}  // namespace vitcache::stand_in
