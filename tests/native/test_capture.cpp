// The stand-in's stream capture: the calls that a capture forbids, by thread, and the captures that they
// invalidate.
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using stand_in::CaptureMode;
using stand_in::kGlobal;
using stand_in::kRelaxed;
using stand_in::kThreadLocal;
using vitcache::CudaError;
using vitcache::Event;
using vitcache::SharedRuntime;
using vitcache::Stream;

constexpr int kNone = 0, kActive = 1, kInvalidated = 2;  // cudaStreamCaptureStatus

// Runs `call` in a thread of its own.
template <typename Call>
void in_thread(Call call) {
  std::thread(call).join();
}

struct Fixture {
  ~Fixture() {
    VITCACHE_CONTROL(reset)();
    runtime->destroy_event(event);
    runtime->destroy_event(other_event);
    runtime->destroy_stream(stream);
    runtime->destroy_stream(other);
    runtime->destroy_stream(blocking);
  }

  Stream create_blocking() const {
    Stream created(nullptr, 0);
    CHECK_EQUAL(stand_in::find<int(void**, unsigned)>("cudaStreamCreateWithFlags")(&created.handle, 0), 0);
    return created;
  }

  // An unsafe call of the calling thread.
  int query() const { return stand_in::find<int(void*)>("cudaEventQuery")(other_event.handle); }
  int set_mode(int mode) const { return runtime->exchange_capture_mode(mode); }
  int record(Event recorded, Stream on) const {
    return stand_in::find<int(void*, void*)>("cudaEventRecord")(recorded.handle, on.handle);
  }
  int wait(Stream waiting, Event awaited, unsigned flags = 0) const {
    return stand_in::find<int(void*, void*, unsigned)>("cudaStreamWaitEvent")(waiting.handle, awaited.handle,
                                                                              flags);
  }
  int copy(Stream on) const {
    return stand_in::find<int(void*, const void*, std::size_t, int, void*)>("cudaMemcpyAsync")(
        &destination, &source, sizeof source, 4, on.handle);
  }

  SharedRuntime runtime = stand_in::open();
  Stream stream = runtime->create_stream(0);
  Stream other = runtime->create_stream(0);
  Stream blocking = create_blocking();
  Event event = runtime->create_event(0);
  Event other_event = runtime->create_event(0);
  int source = 1;
  mutable int destination = 0;
};

void captured_work_is_counted_and_not_executed() {
  const Fixture f;
  CHECK_EQUAL(stand_in::capture_status(f.stream), kNone);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kGlobal), 0);
  CHECK_EQUAL(stand_in::capture_status(f.stream), kActive);
  CHECK_EQUAL(stand_in::capture_status(f.other), kNone);
  CHECK(f.runtime->is_capturing(f.stream) && !f.runtime->is_capturing(f.other));
  CHECK_EQUAL(f.copy(f.stream), 0);
  f.runtime->copy_batch_async({&f.destination}, {&f.source}, {4}, f.stream);
  CHECK_EQUAL(f.record(f.event, f.stream), 0);
  std::uint64_t captured = 0;
  CHECK_EQUAL(stand_in::end_capture(f.stream, &captured), 0);
  CHECK_EQUAL(captured, 2U);
  f.runtime->synchronize_stream(f.stream);
  CHECK_EQUAL(f.destination, 0);
  CHECK_EQUAL(f.copy(f.stream), 0);
  f.runtime->synchronize_stream(f.stream);
  CHECK_EQUAL(f.destination, 1);
}

// For each mode of the capture: in the capturing thread, and in another thread by that thread's mode.
void unsafe_calls_fail_and_invalidate_by_the_modes() {
  struct Case {
    CaptureMode capture;
    bool is_own_thread;
    CaptureMode thread;
    int expected;
  };
  for (const Case& c : std::vector<Case>{
           {kGlobal, true, kGlobal, 900},
           {kGlobal, true, kThreadLocal, 900},
           {kGlobal, true, kRelaxed, 0},
           {kGlobal, false, kGlobal, 900},
           {kGlobal, false, kThreadLocal, 0},
           {kGlobal, false, kRelaxed, 0},
           {kThreadLocal, true, kGlobal, 900},
           {kThreadLocal, true, kThreadLocal, 900},
           {kThreadLocal, true, kRelaxed, 0},
           {kThreadLocal, false, kGlobal, 0},
           {kThreadLocal, false, kThreadLocal, 0},
           {kRelaxed, true, kGlobal, 0},
           {kRelaxed, true, kThreadLocal, 0},
           {kRelaxed, false, kGlobal, 0},
       }) {
    const Fixture f;
    CHECK_EQUAL(stand_in::begin_capture(f.stream, c.capture), 0);
    const auto query = [&] {
      const int earlier = f.set_mode(c.thread);
      CHECK_EQUAL(f.query(), c.expected);
      CHECK_EQUAL(f.set_mode(earlier), c.thread);
    };
    if (c.is_own_thread)
      query();
    else
      in_thread(query);
    CHECK_EQUAL(stand_in::capture_status(f.stream), c.expected == 0 ? kActive : kInvalidated);
    CHECK_EQUAL(stand_in::end_capture(f.stream), c.expected == 0 ? 0 : 901);
    CHECK_EQUAL(stand_in::capture_status(f.stream), kNone);
  }
}

void an_unsafe_call_invalidates_only_the_captures_that_forbid_it() {
  const Fixture f;
  in_thread([&f] { CHECK_EQUAL(stand_in::begin_capture(f.stream, kThreadLocal), 0); });
  in_thread([&f] { CHECK_EQUAL(stand_in::begin_capture(f.other, kGlobal), 0); });
  CHECK_EQUAL(f.query(), 900);
  CHECK_EQUAL(stand_in::capture_status(f.stream), kActive);
  CHECK_EQUAL(stand_in::capture_status(f.other), kInvalidated);
}

void each_unsafe_call_fails_under_a_global_capture() {
  const Fixture f;
  void* memory = nullptr;
  CHECK_EQUAL(stand_in::find<int(void**, std::size_t, unsigned)>("cudaHostAlloc")(&memory, 8, 0), 0);
  std::vector<char> pageable(8);
  void* const rows = pageable.data();
  const std::vector<std::function<int()>> calls{
      [&] { return stand_in::find<int(void*)>("cudaEventQuery")(f.other_event.handle); },
      [&] { return stand_in::find<int(void*)>("cudaEventSynchronize")(f.other_event.handle); },
      [&] { return stand_in::find<int(void*)>("cudaStreamSynchronize")(f.other.handle); },
      [&] { return stand_in::find<int(void**, std::size_t, unsigned)>("cudaHostAlloc")(&memory, 8, 0); },
      [&] { return stand_in::find<int(void*, std::size_t, unsigned)>("cudaHostRegister")(rows, 8, 0); },
      [&] { return stand_in::find<int(void*)>("cudaHostUnregister")(rows); },
      [&] { return stand_in::find<int(void*)>("cudaFreeHost")(memory); },
  };
  for (const auto& call : calls) {
    CHECK_EQUAL(stand_in::begin_capture(f.stream, kGlobal), 0);
    in_thread([&] { CHECK_EQUAL(call(), 900); });
    CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
  }
  f.runtime->free_host(memory);
}

// The calls of CudaRuntime set the relaxed mode, so no capture forbids them, and they invalidate none.
void calls_of_cuda_runtime_leave_every_capture_valid() {
  for (const CaptureMode mode : {kGlobal, kThreadLocal, kRelaxed}) {
    const Fixture f;
    CHECK_EQUAL(stand_in::begin_capture(f.stream, mode), 0);
    const auto calls = [&f] {
      std::vector<char> pageable(8);
      f.runtime->record(f.event, f.other);
      f.runtime->synchronize(f.event);
      CHECK(f.runtime->is_done(f.event) && f.runtime->is_done_or_lost(f.event));
      f.runtime->synchronize_stream(f.other);
      f.runtime->free_host(f.runtime->alloc_host(8));
      f.runtime->register_host(pageable.data(), 8);
      f.runtime->unregister_host(pageable.data());
      f.runtime->destroy_stream(f.runtime->create_stream(0));
      f.runtime->destroy_event(f.runtime->create_event(0));
      CHECK_EQUAL(f.set_mode(kGlobal), kGlobal);  // each call has restored the mode of the thread
    };
    calls();
    in_thread(calls);
    std::uint64_t captured = 1;
    CHECK_EQUAL(stand_in::end_capture(f.stream, &captured), 0);
    CHECK_EQUAL(captured, 0U);
  }
}

void the_legacy_stream_is_unusable_while_a_blocking_stream_is_captured() {
  const Stream legacy(nullptr, 0);
  for (const CaptureMode mode : {kGlobal, kRelaxed}) {
    const Fixture f;
    const std::vector<std::function<int()>> calls{
        [&] { return f.copy(legacy); },
        [&] { return f.record(f.event, legacy); },
        [&] { return f.wait(legacy, f.other_event); },
        [&] { return stand_in::find<int(void*)>("cudaStreamSynchronize")(nullptr); },
    };
    for (const Stream captured : {f.blocking, stand_in::per_thread_stream()})
      for (const auto& call : calls) {
        CHECK_EQUAL(stand_in::begin_capture(captured, mode), 0);
        int status = 0;
        CHECK_EQUAL(stand_in::find<int(void*, int*)>("cudaStreamIsCapturing")(nullptr, &status), 906);
        CHECK_EQUAL(stand_in::capture_status(captured), kActive);  // the question has not invalidated it
        CHECK_EQUAL(call(), 906);
        CHECK_EQUAL(stand_in::end_capture(captured), 901);
        CHECK_EQUAL(call(), 0);
      }
  }
  const Fixture f;
  VITCACHE_CONTROL(set_devices)(2);
  CHECK_EQUAL(stand_in::begin_capture(f.blocking, kRelaxed), 0);
  f.runtime->synchronize_stream(Stream(nullptr, 1));
  CHECK_EQUAL(stand_in::end_capture(f.blocking), 0);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kRelaxed), 0);
  f.runtime->synchronize_stream(legacy);
  CHECK_EQUAL(stand_in::end_capture(f.stream), 0);
}

void a_stream_that_waits_for_a_captured_event_joins_the_capture() {
  const Fixture f;
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kThreadLocal), 0);
  CHECK_EQUAL(f.record(f.event, f.stream), 0);
  CHECK_EQUAL(f.wait(f.other, f.event), 0);
  CHECK_EQUAL(stand_in::capture_status(f.other), kActive);
  CHECK_EQUAL(f.copy(f.other), 0);
  CHECK_EQUAL(stand_in::end_capture(f.other), 903);
  CHECK_EQUAL(f.record(f.event, f.other), 0);
  CHECK_EQUAL(f.wait(f.stream, f.event), 0);
  std::uint64_t captured = 0;
  CHECK_EQUAL(stand_in::end_capture(f.stream, &captured), 0);
  CHECK_EQUAL(captured, 1U);
  CHECK_EQUAL(stand_in::capture_status(f.other), kNone);
}

void a_fork_that_is_not_joined_fails_at_the_end() {
  for (const bool works_after_the_record : {false, true}) {
    const Fixture f;
    CHECK_EQUAL(stand_in::begin_capture(f.stream, kGlobal), 0);
    CHECK_EQUAL(f.record(f.event, f.stream), 0);
    CHECK_EQUAL(f.wait(f.other, f.event), 0);
    if (works_after_the_record) {
      CHECK_EQUAL(f.record(f.event, f.other), 0);
      CHECK_EQUAL(f.copy(f.other), 0);
      CHECK_EQUAL(f.wait(f.stream, f.event), 0);
    }
    CHECK_EQUAL(stand_in::end_capture(f.stream), 904);
    CHECK_EQUAL(stand_in::capture_status(f.other), kNone);
  }
}

void a_captured_stream_waits_only_for_events_of_its_capture() {
  const Fixture f;
  CHECK_EQUAL(f.record(f.event, f.other), 0);
  for (const Event outside : {f.event, f.other_event}) {  // the second was never recorded
    CHECK_EQUAL(stand_in::begin_capture(f.stream, kRelaxed), 0);
    CHECK_EQUAL(f.wait(f.stream, outside), 905);
    CHECK_EQUAL(f.copy(f.stream), 901);
    CHECK_EQUAL(f.record(f.other_event, f.stream), 901);
    CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
  }
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kRelaxed), 0);
  CHECK_EQUAL(f.wait(f.stream, f.event, 1), 0);  // cudaEventWaitExternal
  CHECK_EQUAL(stand_in::begin_capture(f.other, kRelaxed), 0);
  CHECK_EQUAL(f.record(f.event, f.other), 0);
  CHECK_EQUAL(f.wait(f.stream, f.event), 902);  // it would merge two captures
  CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
  CHECK_EQUAL(stand_in::end_capture(f.other), 901);
}

void a_captured_event_cannot_be_queried_until_it_is_recorded_again() {
  const Fixture f;
  for (const char* const entry : {"cudaEventQuery", "cudaEventSynchronize"}) {
    CHECK_EQUAL(stand_in::begin_capture(f.stream, kRelaxed), 0);
    CHECK_EQUAL(f.record(f.event, f.stream), 0);
    const auto use = stand_in::find<int(void*)>(entry);
    CHECK_EQUAL(use(f.event.handle), 907);
    CHECK_THROWS(f.runtime->is_done(f.event), CudaError, "cudaErrorCapturedEvent (907)");
    CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
    CHECK_EQUAL(use(f.event.handle), 907);
    CHECK_EQUAL(f.wait(f.other, f.event), 905);
    CHECK_EQUAL(f.record(f.event, f.other), 0);
    f.runtime->synchronize_stream(f.other);
    CHECK_EQUAL(use(f.event.handle), 0);
  }
}

void synchronizing_a_captured_stream_invalidates_its_capture_in_every_mode() {
  for (const CaptureMode mode : {kGlobal, kThreadLocal, kRelaxed}) {
    const Fixture f;
    CHECK_EQUAL(stand_in::begin_capture(f.stream, mode), 0);
    CHECK_THROWS(f.runtime->synchronize_stream(f.stream), CudaError,
                 "cudaErrorStreamCaptureUnsupported (900)");
    CHECK_EQUAL(stand_in::capture_status(f.stream), kInvalidated);
    CHECK(f.runtime->is_capturing(f.stream));
    CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
  }
}

void captures_begin_and_end_by_cudas_rules() {
  const Fixture f;
  for (const std::uintptr_t handle : {0U, 1U})
    CHECK_EQUAL(stand_in::begin_capture(Stream(reinterpret_cast<void*>(handle), 0), kGlobal), 900);
  CHECK_EQUAL(VITCACHE_CONTROL(begin_capture)(f.stream.handle, 3), 1);
  CHECK_EQUAL(stand_in::end_capture(f.stream), 401);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kThreadLocal), 0);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kThreadLocal), 401);
  in_thread([&f] { CHECK_EQUAL(stand_in::end_capture(f.stream), 908); });
  CHECK_EQUAL(stand_in::end_capture(f.stream), 0);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kRelaxed), 0);
  in_thread([&f] { CHECK_EQUAL(stand_in::end_capture(f.stream), 0); });
}

void destroying_a_joined_stream_invalidates_the_capture() {
  const Fixture f;
  const Stream joined = f.runtime->create_stream(0);
  CHECK_EQUAL(stand_in::begin_capture(f.stream, kGlobal), 0);
  CHECK_EQUAL(f.record(f.event, f.stream), 0);
  CHECK_EQUAL(f.wait(joined, f.event), 0);
  f.runtime->destroy_stream(joined);
  CHECK_EQUAL(stand_in::end_capture(f.stream), 901);
}

void a_thread_captures_its_default_stream() {
  const Fixture f;
  const Stream own = stand_in::per_thread_stream();
  CHECK_EQUAL(stand_in::begin_capture(own, kGlobal), 0);
  CHECK_EQUAL(stand_in::capture_status(own), kActive);
  in_thread([&own] { CHECK_EQUAL(stand_in::capture_status(own), kNone); });
  CHECK_EQUAL(stand_in::end_capture(own), 0);
}

// Threads that capture and threads that work at the same time disturb each other only by the rules.
void threads_capture_and_work_at_the_same_time() {
  const Fixture f;
  constexpr int kThreads = 4, kRounds = 50;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&f, captures = thread % 2 == 0] {
      const Stream own = f.runtime->create_stream(0);
      const Event done = f.runtime->create_event(0);
      std::vector<char> rows(2);
      for (int round = 0; round < kRounds; ++round) {
        if (captures) CHECK_EQUAL(stand_in::begin_capture(own, kGlobal), 0);
        f.runtime->copy_async(rows.data(), rows.data() + 1, 1, own);
        f.runtime->record(done, own);
        std::uint64_t captured = 0;
        if (captures) CHECK_EQUAL(stand_in::end_capture(own, &captured), 0);
        CHECK_EQUAL(captured, captures ? 1U : 0U);
        if (!captures) f.runtime->synchronize(done);
      }
      f.runtime->synchronize_stream(own);
      f.runtime->destroy_event(done);
      f.runtime->destroy_stream(own);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  captured_work_is_counted_and_not_executed();
  unsafe_calls_fail_and_invalidate_by_the_modes();
  an_unsafe_call_invalidates_only_the_captures_that_forbid_it();
  each_unsafe_call_fails_under_a_global_capture();
  calls_of_cuda_runtime_leave_every_capture_valid();
  the_legacy_stream_is_unusable_while_a_blocking_stream_is_captured();
  a_stream_that_waits_for_a_captured_event_joins_the_capture();
  a_fork_that_is_not_joined_fails_at_the_end();
  a_captured_stream_waits_only_for_events_of_its_capture();
  a_captured_event_cannot_be_queried_until_it_is_recorded_again();
  synchronizing_a_captured_stream_invalidates_its_capture_in_every_mode();
  captures_begin_and_end_by_cudas_rules();
  destroying_a_joined_stream_invalidates_the_capture();
  a_thread_captures_its_default_stream();
  threads_capture_and_work_at_the_same_time();
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
}
