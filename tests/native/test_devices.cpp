// A ring and its tickets used from a thread whose current device is another one.
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "ring/ring.h"
#include "ring_copy.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using vitcache::CudaError;
using vitcache::Event;
using vitcache::Ring;
using vitcache::SharedRuntime;
using vitcache::Stream;

constexpr std::size_t kCapacity = 1 << 16;
constexpr std::size_t kPiece = 1 << 13;

// Two devices. The calling thread's current device is the one that is not the ring's.
struct Scene {
  explicit Scene(int ring_device)
      : mine(ring_device), other(1 - ring_device), runtime(reset()), gate(make_gate(*runtime)) {
    runtime->set_device(other);
    ring = std::make_unique<Ring>(runtime, vitcache::RingOptions{kCapacity, 2, kPiece, mine, {}});
  }

  ~Scene() {
    open();
    for (const int device : {0, 1}) runtime->synchronize_stream(Stream(nullptr, device));
    ring.reset();
    check_current_device();
    runtime->free_host(gate);
    runtime->set_device(0);
    VITCACHE_CONTROL(reset)();
  }

  static SharedRuntime reset() {
    VITCACHE_CONTROL(reset)();
    VITCACHE_CONTROL(set_devices)(2);
    return stand_in::open();
  }

  static std::uint32_t* make_gate(const vitcache::CudaRuntime& runtime) {
    auto* made = static_cast<std::uint32_t*>(runtime.alloc_host(sizeof(std::uint32_t)));
    *made = 0;
    return made;
  }

  // Work that `stream` is given from now on waits until `open`.
  void close(Stream stream) const { runtime->wait_value(stream, gate, 1); }
  void open() const { __atomic_store_n(gate, 1U, __ATOMIC_RELEASE); }

  void check_current_device() const { CHECK_EQUAL(runtime->device(), other); }

  int mine, other;
  SharedRuntime runtime;
  std::uint32_t* gate;
  std::unique_ptr<Ring> ring;
};

bool passes_within(const SharedRuntime& runtime, Event event, Seconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
    if (runtime->is_done(event)) return true;
    std::this_thread::yield();
  }
  return false;
}

void the_default_stream_of_the_rings_device_waits_and_no_other(int ring_device) {
  const Scene scene(ring_device);
  const Stream mine(nullptr, scene.mine), other(nullptr, scene.other);
  const Event behind_mine = scene.runtime->create_event(scene.mine);
  const Event behind_other = scene.runtime->create_event(scene.other);
  scene.close(scene.ring->stream());
  const Copy copy(*scene.ring, kPiece, 1);
  std::byte seen{};
  copy.ticket->wait(mine);
  scene.runtime->copy_async(&seen, &copy.destination[kPiece - 1], 1, mine);
  scene.runtime->record(behind_mine, mine);
  scene.runtime->record(behind_other, other);
  CHECK(passes_within(scene.runtime, behind_other, Seconds(20)));
  CHECK(!scene.runtime->is_done(behind_mine));
  scene.open();
  scene.runtime->synchronize(behind_mine);
  CHECK(seen == copy.source[kPiece - 1]);
  copy.check();
  scene.runtime->destroy_event(behind_mine);
  scene.runtime->destroy_event(behind_other);
}

void a_stream_of_another_device_may_wait_for_a_ticket(int ring_device) {
  const Scene scene(ring_device);
  const Stream reader = scene.runtime->create_stream(scene.other);
  scene.close(scene.ring->stream());
  const Copy copy(*scene.ring, kPiece, 1);
  std::byte seen{};
  copy.ticket->wait(reader);
  scene.runtime->copy_async(&seen, &copy.destination[0], 1, reader);
  scene.open();
  scene.runtime->synchronize_stream(reader);
  CHECK(seen == copy.source[0]);
  scene.runtime->destroy_stream(reader);
}

void a_copy_comes_after_the_default_stream_of_the_rings_device(int ring_device) {
  const Scene scene(ring_device);
  scene.close(Stream{nullptr, scene.mine});
  const Copy copy(*scene.ring, kPiece, 1, {}, Stream{nullptr, scene.mine});
  while (!copy.ticket->source_read()) std::this_thread::yield();
  CHECK(!copy.ticket->done());
  scene.open();
  copy.check();
  CHECK_THROWS(Copy(*scene.ring, 1, 2, {}, Stream{nullptr, scene.other}), std::invalid_argument,
               "after is a stream of device " + std::to_string(scene.other) + ", the ring copies to device " +
                   std::to_string(scene.mine));
}

void a_lent_stream_must_be_of_the_rings_device() {
  const Scene scene(1);
  CHECK_THROWS(Ring(scene.runtime, vitcache::RingOptions{kCapacity, 2, kPiece, 1, Stream{nullptr, 0}}),
               std::invalid_argument, "stream is a stream of device 0, the ring copies to device 1");
}

// More copies than the ring has room for: slots retire and events are used again, by threads of either
// device.
void slots_retire_and_events_are_used_again_from_any_thread(int ring_device) {
  const Scene scene(ring_device);
  const auto copy_twice = [&scene](int device) {
    scene.runtime->set_device(device);
    for (unsigned seed = 0; seed < 2; ++seed) Copy(*scene.ring, 3 * kCapacity, seed).check();
    CHECK_EQUAL(scene.runtime->device(), device);
  };
  std::thread(copy_twice, scene.mine).join();
  const std::uint64_t events = stand_in::count().events;
  std::thread(copy_twice, scene.other).join();
  copy_twice(scene.other);
  CHECK_EQUAL(stand_in::count().events, events);
  CHECK_EQUAL(scene.ring->stats().used_bytes, 0U);
}

// Of calls on a stream that a handle names in itself, and on events, CUDA wants no current device.
void every_call_leaves_the_current_device_as_it_was(int ring_device) {
  const Scene scene(ring_device);
  const vitcache::CudaRuntime& runtime = *scene.runtime;
  const Copy copy(*scene.ring, kPiece, 1);
  copy.check();
  const Event event = runtime.create_event(scene.mine);
  const Stream stream(nullptr, scene.mine);
  std::byte to{}, to_in_batch{}, from{};
  struct Call {
    const char* entry;
    std::function<void()> call;
    bool sets_device = true;
  };
  const std::vector<Call> calls{
      {"cudaStreamWaitEvent", [&] { copy.ticket->wait(stream); }},
      {"cudaStreamWaitEvent", [&] { copy.ticket->wait(scene.ring->stream()); }, false},
      {"cudaEventSynchronize", [&] { copy.ticket->synchronize(); }, false},
      {"cudaEventQuery", [&] { static_cast<void>(copy.ticket->done()); }, false},
      {"cudaStreamCreateWithFlags", [&] { runtime.destroy_stream(runtime.create_stream(scene.mine)); }},
      {"cudaEventCreateWithFlags", [&] { runtime.destroy_event(runtime.create_event(scene.mine)); }},
      {"cudaEventRecord", [&] { runtime.record(event, stream); }},
      {"cudaStreamIsCapturing", [&] { static_cast<void>(runtime.is_capturing(stream)); }},
      {"cudaStreamSynchronize", [&] { runtime.synchronize_stream(stream); }},
      {"cudaMemcpyAsync", [&] { runtime.copy_async(&to, &from, 1, stream); }},
      {"cudaMemcpyBatchAsync",
       [&] { runtime.copy_batch_async({&to_in_batch}, {&from}, {1}, scene.ring->stream()); }, false},
      {"cuStreamWaitValue32_v2", [&] { runtime.wait_value(stream, scene.gate, 0); }},
      {"cudaHostRegister",
       [&] { const Ring made(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, scene.mine, {}}); }},
  };
  for (const auto& [entry, call, sets_device] : calls) {
    call();
    scene.check_current_device();
    VITCACHE_CONTROL(fail)(entry, 1, 999);
    CHECK_THROWS(call(), CudaError, "(999)");
    scene.check_current_device();
    if (!sets_device) continue;
    VITCACHE_CONTROL(fail)("cudaSetDevice", 1, 999);
    CHECK_THROWS(call(), CudaError, "(999)");
    scene.check_current_device();
  }
  VITCACHE_CONTROL(fail)("cudaSetDevice", 2, 999);  // the one that sets it back, which is tried again
  copy.ticket->wait(stream);
  scene.check_current_device();
  runtime.destroy_event(event);
  runtime.synchronize_stream(stream);
  runtime.synchronize_stream(scene.ring->stream());
  scene.check_current_device();
}

void memory_is_locked_while_the_rings_device_is_current(int ring_device) {
  const Scene scene(ring_device);
  VITCACHE_CONTROL(reset)();
  VITCACHE_CONTROL(set_devices)(2);
  const Ring made(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, scene.mine, {}});
  CHECK_EQUAL(stand_in::count().locking_devices, std::uint64_t{1} << scene.mine);
}

// A wait for a value is a call of the driver, which knows no context in a thread that has called nothing yet.
void a_new_thread_may_copy(int ring_device) {
  const Scene scene(ring_device);
  Copy(*scene.ring, kPiece, 1).check();  // so that there is an event to be used again
  std::thread([&scene] { Copy(*scene.ring, kPiece, 2).check(); }).join();
}

void a_ticket_of_another_devices_ring_is_refused() {
  const Scene scene(1);
  Ring ring(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, 0, {}});
  Bytes memory(1);
  const auto view = std::make_shared<const vitcache::StridedView>(
      memory.data(), 1, std::vector<std::int64_t>{1}, std::vector<std::int64_t>{1});
  const auto ticket = scene.ring->make_ticket();
  CHECK_THROWS(ring.copy(*ticket, memory.data(), view, vitcache::Cast::kNone, {}, {}), std::invalid_argument,
               "the ticket is of device 1, the ring copies to device 0");
}

// No call works on a lost device, and so the one that sets the current device back need not.
void a_ring_of_a_lost_device_closes(int ring_device) {
  const Scene scene(ring_device);
  VITCACHE_CONTROL(fail_copy)(1);
  const Copy copy(*scene.ring, kPiece, 1);
  while (copy.ticket->is_in_flight()) std::this_thread::yield();
  scene.ring->close();
  VITCACHE_CONTROL(reset)();
  VITCACHE_CONTROL(set_devices)(2);
  scene.runtime->set_device(scene.other);
}

}  // namespace

int main() {
  for (const int ring_device : {0, 1}) {
    the_default_stream_of_the_rings_device_waits_and_no_other(ring_device);
    a_stream_of_another_device_may_wait_for_a_ticket(ring_device);
    a_copy_comes_after_the_default_stream_of_the_rings_device(ring_device);
    slots_retire_and_events_are_used_again_from_any_thread(ring_device);
    every_call_leaves_the_current_device_as_it_was(ring_device);
    memory_is_locked_while_the_rings_device_is_current(ring_device);
    a_new_thread_may_copy(ring_device);
    a_ring_of_a_lost_device_closes(ring_device);
  }
  a_ticket_of_another_devices_ring_is_refused();
  a_lent_stream_must_be_of_the_rings_device();
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
}
