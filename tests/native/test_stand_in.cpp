// The stand-in enforces CUDA's rules, so that code that breaks one of these rules fails on the stand-in, too.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using stand_in::Pause;
using vitcache::CudaError;
using vitcache::Event;
using vitcache::SharedRuntime;
using vitcache::Stream;

struct Fixture {
  SharedRuntime runtime = stand_in::open();
  Stream stream = runtime->create_stream(0);
  Stream other = runtime->create_stream(0);
  Event event = runtime->create_event(0);

  ~Fixture() {
    VITCACHE_CONTROL(reset)();
    runtime->destroy_event(event);
    runtime->destroy_stream(stream);
    runtime->destroy_stream(other);
  }
};

void wait_event_waits_for_the_recording_at_the_call() {
  Fixture f;
  int value = 1, seen = 0;
  {
    const Pause pause;
    f.runtime->wait_event(f.other, f.event);  // never recorded
    f.runtime->copy_async(&seen, &value, sizeof value, f.stream);
    f.runtime->record(f.event, f.stream);
    CHECK(!f.runtime->is_done(f.event));
    f.runtime->wait_event(f.other, f.event);
    // If the wait used this later recording, `other` would wait for itself.
    f.runtime->record(f.event, f.other);
  }
  f.runtime->synchronize_stream(f.other);
  CHECK_EQUAL(seen, 1);
  CHECK(f.runtime->is_done(f.event));
}

void wait_value_compares_modulo_2_to_the_32() {
  Fixture f;
  auto* value = static_cast<std::uint32_t*>(f.runtime->alloc_host(4));
  *value = 0xFFFFFFF0U;
  f.runtime->wait_value(f.stream, value, 2);
  f.runtime->record(f.event, f.stream);
  CHECK(!f.runtime->is_done(f.event));
  __atomic_store_n(value, 3U, __ATOMIC_RELEASE);
  f.runtime->synchronize(f.event);
  std::uint32_t pageable = 0;
  CHECK_THROWS(f.runtime->wait_value(f.stream, &pageable, 0), CudaError, "cudaErrorInvalidValue (1)");
  f.runtime->free_host(value);
}

void destroyed_streams_and_events_finish_and_are_then_refused() {
  Fixture f;
  int value = 1, seen = 0;
  const Stream stream = f.runtime->create_stream(0);
  const Event event = f.runtime->create_event(0);
  {
    const Pause pause;
    f.runtime->copy_async(&seen, &value, sizeof value, stream);
    f.runtime->record(event, stream);
    f.runtime->record(f.event, stream);
    f.runtime->destroy_stream(stream);
    f.runtime->destroy_event(event);
  }
  f.runtime->synchronize(f.event);
  CHECK_EQUAL(seen, 1);
  CHECK_THROWS(f.runtime->record(f.event, stream), CudaError, "cudaErrorInvalidResourceHandle (400)");
  CHECK_THROWS(f.runtime->is_done(event), CudaError, "(400)");
  CHECK_EQUAL(stand_in::count().streams, 2U);
  CHECK_EQUAL(stand_in::count().events, 1U);
}

void synchronizing_calls_and_copies_are_counted() {
  Fixture f;
  VITCACHE_CONTROL(reset)();
  auto* locked = static_cast<char*>(f.runtime->alloc_host(8));
  std::vector<char> pageable(8);
  CHECK_EQUAL(stand_in::count().synchronizing_calls, 1U);
  CHECK_EQUAL(stand_in::count().locked_bytes, 8U);
  f.runtime->copy_async(pageable.data(), locked, 8, f.stream);
  f.runtime->copy_async(locked, pageable.data(), 8, f.stream);
  f.runtime->record(f.event, f.stream);
  f.runtime->wait_event(f.other, f.event);
  CHECK_EQUAL(stand_in::count().synchronizing_calls, 1U);
  f.runtime->copy_async(pageable.data(), pageable.data() + 4, 4, f.stream);
  f.runtime->synchronize(f.event);
  f.runtime->synchronize_stream(f.stream);
  CHECK_EQUAL(stand_in::count().synchronizing_calls, 4U);
  CHECK_EQUAL(stand_in::count().copies, 3U);
  CHECK_EQUAL(stand_in::count().copied_bytes, 20U);
  f.runtime->register_host(pageable.data(), 8);
  CHECK_THROWS(f.runtime->register_host(pageable.data() + 7, 8), CudaError, "(712)");
  f.runtime->unregister_host(pageable.data());
  f.runtime->free_host(locked);
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
}

void a_failed_copy_loses_the_device() {
  Fixture f;
  int value = 1, seen = 0;
  {
    const Pause pause;
    VITCACHE_CONTROL(fail_copy)(2);
    f.runtime->copy_async(&seen, &value, sizeof value, f.stream);
    f.runtime->copy_async(&value, &seen, sizeof value, f.stream);
    f.runtime->copy_async(&seen, &value, 0, f.stream);
    f.runtime->record(f.event, f.stream);
  }
  CHECK_THROWS(f.runtime->synchronize(f.event), CudaError, "cudaErrorIllegalAddress (700)");
  CHECK_THROWS(f.runtime->is_done(f.event), CudaError, "(700)");
  CHECK_THROWS(f.runtime->create_event(0), CudaError, "(700)");
  CHECK_EQUAL(stand_in::count().copies, 1U);
}

void fail_makes_only_the_nth_call_fail() {
  Fixture f;
  VITCACHE_CONTROL(fail)("cudaEventRecord", 2, 999);
  f.runtime->record(f.event, f.stream);
  CHECK_THROWS(f.runtime->record(f.event, f.stream), CudaError, "cudaErrorInjected (999)");
  f.runtime->record(f.event, f.stream);
}

void each_device_has_its_own_default_stream() {
  Fixture f;
  VITCACHE_CONTROL(set_devices)(2);
  auto* gate = static_cast<std::uint32_t*>(f.runtime->alloc_host(4));
  *gate = 0;
  const Event second = f.runtime->create_event(1);
  f.runtime->wait_value(Stream{nullptr, 1}, gate, 1);
  f.runtime->record(second, Stream{nullptr, 1});
  f.runtime->record(f.event, Stream{nullptr, 0});
  f.runtime->synchronize(f.event);
  CHECK(!f.runtime->is_done(second));
  __atomic_store_n(gate, 1U, __ATOMIC_RELEASE);
  f.runtime->synchronize(second);
  f.runtime->destroy_event(second);
  f.runtime->free_host(gate);
}

void record_needs_a_stream_of_the_events_device_and_wait_does_not() {
  Fixture f;
  VITCACHE_CONTROL(set_devices)(2);
  const Stream second = f.runtime->create_stream(1);
  CHECK_THROWS(f.runtime->record(f.event, second), CudaError, "cudaErrorInvalidResourceHandle (400)");
  CHECK_THROWS(f.runtime->record(f.event, Stream{nullptr, 1}), CudaError, "(400)");
  int value = 1, seen = 0, seen_second = 0;
  {
    const Pause pause;
    f.runtime->copy_async(&seen, &value, sizeof value, f.stream);
    f.runtime->record(f.event, f.stream);
    f.runtime->wait_event(second, f.event);
    f.runtime->copy_async(&seen_second, &seen, sizeof value, second);
  }
  f.runtime->synchronize_stream(second);
  CHECK_EQUAL(seen_second, 1);
  CHECK_THROWS(f.runtime->create_event(2), CudaError, "cudaErrorInvalidDevice (101)");
  f.runtime->destroy_stream(second);
}

void record_in_a_forked_child_fails() {
  Fixture f;
  const pid_t child = fork();
  if (child == 0) {
    try {
      f.runtime->record(f.event, f.stream);
    } catch (const CudaError&) {
      _exit(7);
    }
    _exit(1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 7);
}

// Each stream copies a number from the previous cell after the event of the previous stream.
void streams_chained_by_events_run_in_order() {
  Fixture f;
  constexpr int kStreams = 4, kRounds = 200;
  std::vector<Stream> streams;
  std::vector<Event> events;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(f.runtime->create_stream(0));
    events.push_back(f.runtime->create_event(0));
  }
  std::vector<std::uint64_t> cells(kStreams * kRounds + 1);
  cells[0] = 42;
  for (std::size_t step = 0; step + 1 < cells.size(); ++step) {
    const std::size_t current = step % kStreams, previous = (step + kStreams - 1) % kStreams;
    f.runtime->wait_event(streams[current], events[previous]);
    f.runtime->copy_async(&cells[step + 1], &cells[step], sizeof cells[0], streams[current]);
    f.runtime->record(events[current], streams[current]);
  }
  f.runtime->synchronize(events[kStreams - 1]);
  CHECK_EQUAL(cells.back(), 42U);
  for (const Stream stream : streams) f.runtime->destroy_stream(stream);
  for (const Event event : events) f.runtime->destroy_event(event);
}

}  // namespace

int main() {
  wait_event_waits_for_the_recording_at_the_call();
  wait_value_compares_modulo_2_to_the_32();
  destroyed_streams_and_events_finish_and_are_then_refused();
  synchronizing_calls_and_copies_are_counted();
  a_failed_copy_loses_the_device();
  fail_makes_only_the_nth_call_fail();
  streams_chained_by_events_run_in_order();
  each_device_has_its_own_default_stream();
  record_needs_a_stream_of_the_events_device_and_wait_does_not();
  record_in_a_forked_child_fails();
}
