// Entry points of streams.
#include <cstdint>
#include <memory>
#include <system_error>

#include "stand_in/call_record.h"
#include "stand_in/capture.h"
#include "stand_in/entry.h"
#include "stand_in/hooks.h"
#include "stand_in/stream_table.h"

using namespace vitcache::stand_in;

namespace {

constexpr unsigned kNonBlocking = 1;  // cudaStreamNonBlocking

}  // namespace

EXPORT int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  BEGIN("cudaStreamCreateWithFlags");
  try {
    *stream = stream_table().create(thread_state().device, (flags & kNonBlocking) == 0);
  } catch (const std::system_error&) {  // no thread can be started
    return result(kOperatingSystem);
  }
  return kSuccess;
}

EXPORT int cudaStreamDestroy(void* stream) {
  BEGIN("cudaStreamDestroy", true);
  const std::uint64_t serial = stream_table().destroy(stream);
  if (serial == 0) return result(kInvalidHandle);
  forget_stream(serial);
  return kSuccess;
}

EXPORT int cudaStreamSynchronize(void* stream) {
  BEGIN("cudaStreamSynchronize");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  VITCACHE_RETURN_IF_ERROR(begin_synchronizing(*found));
  VITCACHE_RETURN_IF_ERROR(begin_unsafe_call());
  count_synchronizing();
  record_call({"cudaStreamSynchronize", found->serial(), stream});
  const auto completion = std::make_shared<Completion>();
  stream_table().push(*found, [completion] { completion->complete(); });
  completion->wait();
  return result(is_lost() ? kIllegalAddress : kSuccess);
}

EXPORT int cudaStreamIsCapturing(void* stream, int* status) {
  BEGIN("cudaStreamIsCapturing");
  Stream* found = find_stream(stream);
  if (found == nullptr) return result(kInvalidHandle);
  return result(capture_status(*found, *status));
}

EXPORT int cudaThreadExchangeStreamCaptureMode(int* mode) { return result(exchange_capture_mode(*mode)); }

EXPORT int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) {
  BEGIN("cudaStreamWaitEvent");
  Stream* found = find_stream(stream);
  const std::shared_ptr<Event> awaited = find_event(event);
  if (found == nullptr || awaited == nullptr) return result(kInvalidHandle);
  const Use use = begin_wait(*found, *awaited, flags);
  VITCACHE_RETURN_IF_ERROR(use.error);
  record_call({"cudaStreamWaitEvent", found->serial(), stream, awaited->serial()});
  if (use.is_captured) return kSuccess;
  if (const std::shared_ptr<Completion> completion = awaited->get(); completion != nullptr)
    stream_table().push(*found, [completion] { completion->wait(); });
  return kSuccess;
}
