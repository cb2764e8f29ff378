#include "stand_in/capture.h"

#include <atomic>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "runtime/mutex.h"
#include "stand_in/capture_sequence.h"
#include "stand_in/entry.h"
#include "stand_in/faults.h"

namespace vitcache::stand_in {
namespace {

constexpr int kGlobal = 0;
constexpr int kRelaxed = 2;
constexpr int kActive = 1;             // cudaStreamCaptureStatusActive
constexpr int kInvalidated = 2;        // cudaStreamCaptureStatusInvalidated
constexpr unsigned kExternalWait = 1;  // cudaEventWaitExternal

struct CapturedStream {
  std::shared_ptr<Capture> capture;
  int device;
  Stream::Kind kind;
};

// The recording of an event in a captured stream.
struct CapturedRecord {
  std::shared_ptr<Capture> capture;  // which may have ended
  Serial stream;
  std::uint64_t position;
};

struct Captures {
  std::atomic<bool> any{false};
  Mutex mutex;
  std::map<Serial, CapturedStream> streams VITCACHE_GUARDED_BY(mutex);
  std::map<Serial, CapturedRecord> events VITCACHE_GUARDED_BY(mutex);
};

// Never destroyed: threads may still call when the process ends.
Captures& captures() {
  static auto* const instance = new Captures;
  return *instance;
}

std::shared_ptr<Capture> capture_of(Captures& all, const Stream& stream) VITCACHE_REQUIRES(all.mutex) {
  const auto found = all.streams.find(stream.serial());
  return found == all.streams.end() ? nullptr : found->second.capture;
}

bool is_active(Captures& all, const std::shared_ptr<Capture>& capture) VITCACHE_REQUIRES(all.mutex) {
  return all.streams.count(capture->origin) == 1 && all.streams.at(capture->origin).capture == capture;
}

// Whether a blocking stream of the legacy stream's device is captured. Invalidates its capture if asked to.
bool conflicts_with_capture(Captures& all, const Stream& stream, bool invalidates)
    VITCACHE_REQUIRES(all.mutex) {
  if (stream.kind() != Stream::Kind::kLegacy) return false;
  bool conflicts = false;
  for (auto& [serial, captured] : all.streams) {
    if (captured.kind != Stream::Kind::kBlocking || captured.device != stream.device()) continue;
    conflicts = true;
    if (invalidates) captured.capture->is_invalidated = true;
  }
  return conflicts;
}

Use begin_work_locked(Captures& all, const Stream& stream) VITCACHE_REQUIRES(all.mutex) {
  if (conflicts_with_capture(all, stream, true)) return {kCaptureImplicit};
  const std::shared_ptr<Capture> capture = capture_of(all, stream);
  if (capture == nullptr) return {};
  if (capture->is_invalidated) return {kCaptureInvalidated};
  capture->add_call(stream.serial());
  return {kSuccess, true};
}

// `stream` is not captured, or belongs to another capture than `record`.
Use join(Captures& all, const Stream& stream, const CapturedRecord& record) VITCACHE_REQUIRES(all.mutex) {
  const std::shared_ptr<Capture>& capture = record.capture;
  // The documents name no error for an event of a capture that has ended.
  if (!is_active(all, capture)) return {kCaptureIsolation};
  if (capture->is_invalidated) return {kCaptureInvalidated};
  if (stream.kind() == Stream::Kind::kLegacy) {
    capture->is_invalidated = true;
    return {kCaptureUnsupported};  // the legacy stream cannot be captured
  }
  if (const std::shared_ptr<Capture> other = capture_of(all, stream); other != nullptr) {
    other->is_invalidated = capture->is_invalidated = true;
    return {kCaptureMerge};
  }
  all.streams[stream.serial()] = {capture, stream.device(), stream.kind()};
  return {kSuccess, true};
}

}  // namespace

int begin_capture(const Stream& stream, int mode) {
  if (mode < kGlobal || mode > kRelaxed) return kInvalidValue;
  if (stream.kind() == Stream::Kind::kLegacy) return kCaptureUnsupported;
  Captures& all = captures();
  const Lock lock(all.mutex);
  all.any = true;
  if (capture_of(all, stream) != nullptr) return kIllegalState;  // the documents name no error
  all.streams[stream.serial()] = {std::make_shared<Capture>(stream.serial(), mode), stream.device(),
                                  stream.kind()};
  return kSuccess;
}

int end_capture(const Stream& stream, std::uint64_t& captured) {
  captured = 0;
  Captures& all = captures();
  const Lock lock(all.mutex);
  const std::shared_ptr<Capture> capture = capture_of(all, stream);
  if (capture == nullptr) return kIllegalState;  // the documents name no error
  if (capture->origin != stream.serial()) return kCaptureUnmatched;
  if (capture->mode != kRelaxed && !capture->is_of_this_thread()) return kCaptureWrongThread;
  for (auto it = all.streams.begin(); it != all.streams.end();)
    it = it->second.capture == capture ? all.streams.erase(it) : std::next(it);
  if (capture->is_invalidated) return kCaptureInvalidated;
  if (!capture->is_joined()) return kCaptureUnjoined;
  captured = capture->num_calls();
  return kSuccess;
}

void end_all_captures() {
  Captures& all = captures();
  const Lock lock(all.mutex);
  all.streams.clear();
  all.events.clear();
  all.any = false;
}

int begin_unsafe_call() {
  Captures& all = captures();
  const int thread_mode = thread_state().capture_mode;
  if (!all.any || thread_mode == kRelaxed) return kSuccess;
  const Lock lock(all.mutex);
  int status = kSuccess;
  for (auto& [serial, captured] : all.streams) {
    Capture& capture = *captured.capture;
    if (capture.is_of_this_thread() ? capture.mode == kRelaxed
                                    : thread_mode != kGlobal || capture.mode != kGlobal)
      continue;
    capture.is_invalidated = true;
    status = kCaptureUnsupported;
  }
  return status;
}

int begin_synchronizing(const Stream& stream) {
  Captures& all = captures();
  if (!all.any) return kSuccess;
  const Lock lock(all.mutex);
  if (conflicts_with_capture(all, stream, true)) return kCaptureImplicit;
  const std::shared_ptr<Capture> capture = capture_of(all, stream);
  if (capture == nullptr) return kSuccess;
  return std::exchange(capture->is_invalidated, true) ? kCaptureInvalidated : kCaptureUnsupported;
}

int begin_using(const Event& event) {
  Captures& all = captures();
  if (!all.any) return kSuccess;
  const Lock lock(all.mutex);
  const auto found = all.events.find(event.serial());
  if (found == all.events.end()) return kSuccess;
  found->second.capture->is_invalidated = true;
  return kCapturedEvent;
}

int capture_status(const Stream& stream, int& status) {
  status = 0;
  Captures& all = captures();
  if (!all.any) return kSuccess;
  const Lock lock(all.mutex);
  if (conflicts_with_capture(all, stream, false)) return kCaptureImplicit;
  if (const std::shared_ptr<Capture> capture = capture_of(all, stream); capture != nullptr)
    status = capture->is_invalidated ? kInvalidated : kActive;
  return kSuccess;
}

int exchange_capture_mode(int& mode) {
  if (mode < kGlobal || mode > kRelaxed) return kInvalidValue;
  std::swap(thread_state().capture_mode, mode);
  return kSuccess;
}

Use begin_work(const Stream& stream) {
  Captures& all = captures();
  if (!all.any) return {};
  const Lock lock(all.mutex);
  return begin_work_locked(all, stream);
}

Use begin_record(const Event& event, const Stream& stream) {
  Captures& all = captures();
  if (!all.any) return {};
  const Lock lock(all.mutex);
  if (conflicts_with_capture(all, stream, true)) return {kCaptureImplicit};
  const std::shared_ptr<Capture> capture = capture_of(all, stream);
  if (capture == nullptr) {
    all.events.erase(event.serial());
    return {};
  }
  if (capture->is_invalidated) return {kCaptureInvalidated};
  all.events[event.serial()] = {capture, stream.serial(), capture->position(stream.serial())};
  return {kSuccess, true};
}

Use begin_wait(const Stream& stream, const Event& event, unsigned flags) {
  Captures& all = captures();
  if (!all.any) return {};
  const Lock lock(all.mutex);
  if (conflicts_with_capture(all, stream, true)) return {kCaptureImplicit};
  const std::shared_ptr<Capture> capture = capture_of(all, stream);
  if (capture != nullptr && capture->is_invalidated) return {kCaptureInvalidated};
  const auto found = all.events.find(event.serial());
  if (found == all.events.end()) {
    if (capture == nullptr) return {};
    if (flags == kExternalWait) return begin_work_locked(all, stream);
    capture->is_invalidated = true;
    return {kCaptureIsolation};
  }
  const CapturedRecord& record = found->second;
  if (capture != record.capture) {
    const Use joined = join(all, stream, record);
    if (joined.error != kSuccess) return joined;
  }
  record.capture->wait(stream.serial(), record.stream, record.position);
  return {kSuccess, true};
}

void forget_stream(std::uint64_t serial) {
  Captures& all = captures();
  if (!all.any) return;
  const Lock lock(all.mutex);
  const auto found = all.streams.find(serial);
  if (found == all.streams.end()) return;
  found->second.capture->is_invalidated = true;
  all.streams.erase(found);
}

}  // namespace vitcache::stand_in

EXPORT int vitcache_stand_in_begin_capture(void* stream, int mode) {
  vitcache::stand_in::Stream* found = vitcache::stand_in::find_stream(stream);
  return found == nullptr ? vitcache::stand_in::kInvalidHandle
                          : vitcache::stand_in::begin_capture(*found, mode);
}

EXPORT int vitcache_stand_in_end_capture(void* stream, std::uint64_t* captured) {
  vitcache::stand_in::Stream* found = vitcache::stand_in::find_stream(stream);
  return found == nullptr ? vitcache::stand_in::kInvalidHandle
                          : vitcache::stand_in::end_capture(*found, *captured);
}
