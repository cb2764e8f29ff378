// Stream capture. The work of a captured stream is not executed: it would become nodes of a graph, which the
// stand-in only counts.
//
// The rules are those of NVIDIA's documents: the notes of cudaStreamBeginCapture, cudaStreamIsCapturing and
// cudaThreadExchangeStreamCaptureMode in cuda_runtime_api.h, and "Stream capture" in the chapter on CUDA
// graphs of the CUDA C++ Programming Guide.
//   - Modes of a capture and of a thread: global 0, thread-local 1, relaxed 2. A call is unsafe if a graph
//     cannot contain it, such as an allocation or a wait of the host. A thread may not make an unsafe call if
//     it is not in relaxed mode and has begun a capture that is not relaxed, or if it is in global mode and
//     another thread has begun a global capture. The call then fails and invalidates these captures.
//   - A captured stream cannot be synchronized, and a captured event (one whose last record is in a captured
//     stream) cannot be queried or synchronized, in every mode.
//   - While a blocking stream is captured, the legacy stream of its device cannot be used, in every mode.
//   - A stream that waits for a captured event joins the event's capture. The stream where the capture began
//     must wait for the last work of each joined stream before the capture ends.
//   - A captured stream cannot wait for an event that was recorded outside of its capture.
//   - A call that breaks a rule invalidates the capture. Its streams fail until the capture is ended.
//
// Where the documents name no error, the stand-in chooses one, and a comment says so.
//
// Thread rule: any thread may call any function. Before the first capture no function locks a mutex, so
// ThreadSanitizer sees the races of tests without captures.
#pragma once

#include <cstdint>
#include <utility>

#include "stand_in/errors.h"
#include "stand_in/stream.h"
#include "stand_in/thread_state.h"

namespace vitcache::stand_in {

struct Use {
  int error = kSuccess;
  bool is_captured = false;  // the stream must not execute the work
};

#ifdef VITCACHE_STAND_IN_FAULTS

int begin_capture(const Stream& stream, int mode);
// Stores the number of captured calls in `captured`, which is 0 if the capture was invalidated.
int end_capture(const Stream& stream, std::uint64_t& captured);
void end_all_captures();

// Each returns an error, which the entry point must return, or kSuccess.
int begin_unsafe_call();
int begin_synchronizing(const Stream& stream);
int begin_using(const Event& event);  // to query or synchronize it
int capture_status(const Stream& stream, int& status);
int exchange_capture_mode(int& mode);

Use begin_work(const Stream& stream);
Use begin_record(const Event& event, const Stream& stream);
Use begin_wait(const Stream& stream, const Event& event, unsigned flags);

// The stream was destroyed. The stand-in then invalidates its capture; the documents name no rule.
void forget_stream(std::uint64_t serial);

#else

inline int begin_unsafe_call() { return kSuccess; }
inline int begin_synchronizing(const Stream&) { return kSuccess; }
inline int begin_using(const Event&) { return kSuccess; }
inline int capture_status(const Stream&, int& status) { return status = 0; }
inline int exchange_capture_mode(int& mode) {
  std::swap(thread_state().capture_mode, mode);
  return kSuccess;
}
inline Use begin_work(const Stream&) { return {}; }
inline Use begin_record(const Event&, const Stream&) { return {}; }
inline Use begin_wait(const Stream&, const Event&, unsigned) { return {}; }
inline void forget_stream(std::uint64_t) {}

#endif

}  // namespace vitcache::stand_in
