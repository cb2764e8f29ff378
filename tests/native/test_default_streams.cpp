// The legacy stream of a device synchronizes with its blocking streams, and each thread has a default stream.
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "stand_in.h"

namespace {

using stand_in::Gate;
using vitcache::Event;
using vitcache::SharedRuntime;
using vitcache::Stream;

constexpr unsigned kBlocking = 0, kNonBlocking = 1;

Stream legacy(std::uintptr_t handle = stand_in::kLegacyHandle, int device = 0) {
  return Stream(reinterpret_cast<void*>(handle), device);
}

struct Fixture {
  Fixture() { VITCACHE_CONTROL(set_devices)(2); }
  ~Fixture() {
    runtime->destroy_event(event);
    runtime->destroy_stream(blocking);
    runtime->destroy_stream(non_blocking);
    VITCACHE_CONTROL(reset)();
  }

  Stream create(unsigned flags) const {
    Stream stream(nullptr, 0);
    CHECK_EQUAL(stand_in::find<int(void**, unsigned)>("cudaStreamCreateWithFlags")(&stream.handle, flags), 0);
    return stream;
  }

  // Queues work on `later` behind a gate on `earlier`, and checks whether `later` waits for the gate. It soon
  // completes if it does not wait.
  void check_waits(Stream later, Stream earlier, bool expected) const {
    Gate gate(runtime);
    gate.hold(earlier);
    runtime->record(event, later);
    runtime->wait_event(watcher.stream, event);
    runtime->record(watcher.event, watcher.stream);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(expected ? 20 : 20'000);
    while (!runtime->is_done(watcher.event) && std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
    CHECK_EQUAL(!runtime->is_done(watcher.event), expected);
    gate.open();
    runtime->synchronize(watcher.event);
    runtime->synchronize_stream(earlier);
  }

  struct Watcher {
    explicit Watcher(SharedRuntime opened)
        : runtime(std::move(opened)), stream(runtime->create_stream(0)), event(runtime->create_event(0)) {}
    ~Watcher() {
      runtime->destroy_event(event);
      runtime->destroy_stream(stream);
    }
    SharedRuntime runtime;
    Stream stream;
    Event event;
  };

  SharedRuntime runtime = stand_in::open();
  Stream blocking = create(kBlocking);
  Stream non_blocking = create(kNonBlocking);
  Event event = runtime->create_event(0);
  Watcher watcher{runtime};
};

void the_legacy_stream_and_blocking_streams_wait_for_each_other() {
  const Fixture f;
  for (const std::uintptr_t handle : {std::uintptr_t{0}, stand_in::kLegacyHandle}) {
    f.check_waits(legacy(handle), f.blocking, true);
    f.check_waits(f.blocking, legacy(handle), true);
    f.check_waits(legacy(handle), stand_in::per_thread_stream(), true);
    f.check_waits(stand_in::per_thread_stream(), legacy(handle), true);
  }
  f.check_waits(legacy(0), legacy(1), true);
}

void non_blocking_streams_and_the_legacy_stream_do_not_wait() {
  const Fixture f;
  f.check_waits(legacy(), f.non_blocking, false);
  f.check_waits(f.non_blocking, legacy(), false);
  f.check_waits(f.blocking, stand_in::per_thread_stream(), false);
  f.check_waits(stand_in::per_thread_stream(), f.blocking, false);
}

void legacy_streams_wait_only_for_streams_of_their_device() {
  const Fixture f;
  Gate gate(f.runtime);
  gate.hold(f.blocking);
  gate.hold(stand_in::per_thread_stream(0));
  f.runtime->synchronize_stream(legacy(0, 1));
  f.runtime->synchronize_stream(stand_in::per_thread_stream(1));
  gate.open();
}

void each_thread_has_its_own_default_stream() {
  const Fixture f;
  Gate gate(f.runtime);
  gate.hold(stand_in::per_thread_stream());
  std::thread([&f] { f.runtime->synchronize_stream(stand_in::per_thread_stream()); }).join();
  gate.open();
  f.runtime->synchronize_stream(stand_in::per_thread_stream());
}

// The legacy stream orders work of two threads, whose default streams do not wait for each other. The second
// stream is created after the work of the legacy stream, and waits for it all the same.
void the_legacy_stream_orders_the_default_streams_of_threads() {
  const Fixture f;
  int first = 1, second = 0, third = 0;
  {
    const stand_in::Pause pause;
    f.runtime->copy_async(&second, &first, sizeof first, stand_in::per_thread_stream());
    f.runtime->record(f.event, legacy());
    std::thread([&] {
      f.runtime->copy_async(&third, &second, sizeof first, stand_in::per_thread_stream());
      f.runtime->record(f.event, stand_in::per_thread_stream());
    }).join();
  }
  f.runtime->synchronize(f.event);
  CHECK_EQUAL(third, 1);
}

void queued_work_of_a_thread_runs_after_the_thread_has_ended() {
  const Fixture f;
  const std::uint64_t streams = stand_in::count().streams;
  Gate gate(f.runtime);
  const int value = 7;
  int seen = 0;
  std::thread([&] {
    gate.hold(stand_in::per_thread_stream());
    f.runtime->copy_async(&seen, &value, sizeof value, stand_in::per_thread_stream());
    f.runtime->record(f.event, stand_in::per_thread_stream());
  }).join();
  CHECK(!f.runtime->is_done(f.event));
  gate.open();
  f.runtime->synchronize(f.event);
  CHECK_EQUAL(seen, 7);
  CHECK_EQUAL(stand_in::count().streams, streams);
}

void default_streams_cannot_be_destroyed_or_take_a_batch_on_legacy() {
  const Fixture f;
  const auto destroy = stand_in::find<int(void*)>("cudaStreamDestroy");
  for (const std::uintptr_t handle : {0U, 1U, 2U}) CHECK_EQUAL(destroy(legacy(handle).handle), 400);
  for (const std::uintptr_t handle : {0U, 1U, 2U})
    CHECK_THROWS(f.runtime->copy_batch_async({nullptr}, {nullptr}, {0}, legacy(handle)),
                 std::invalid_argument, "cannot be queued on a default stream");
}

// Many threads use all kinds of streams at the same time: nothing deadlocks, and no sanitizer complains.
void threads_may_mix_default_and_created_streams() {
  const Fixture f;
  constexpr int kThreads = 4, kRounds = 50;
  std::vector<std::thread> threads;
  std::vector<std::uint64_t> cells(kThreads);
  for (std::size_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      const Stream own = f.create(kBlocking);
      const Event done = f.runtime->create_event(0);
      const std::uint64_t one = thread + 1;
      for (int round = 0; round < kRounds; ++round) {
        f.runtime->copy_async(&cells[thread], &one, sizeof one, own);
        f.runtime->record(done, round % 2 == 0 ? legacy() : stand_in::per_thread_stream());
        f.runtime->wait_event(own, done);
      }
      f.runtime->synchronize_stream(own);
      CHECK_EQUAL(cells[thread], one);
      f.runtime->destroy_event(done);
      f.runtime->destroy_stream(own);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  the_legacy_stream_and_blocking_streams_wait_for_each_other();
  non_blocking_streams_and_the_legacy_stream_do_not_wait();
  legacy_streams_wait_only_for_streams_of_their_device();
  each_thread_has_its_own_default_stream();
  the_legacy_stream_orders_the_default_streams_of_threads();
  queued_work_of_a_thread_runs_after_the_thread_has_ended();
  default_streams_cannot_be_destroyed_or_take_a_batch_on_legacy();
  threads_may_mix_default_and_created_streams();
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
}
