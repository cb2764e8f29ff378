// A ring and its tickets in a thread whose current device is not the ring's.
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

// A ring of one of two devices. The calling thread's current device is the other device.
struct Scene {
  explicit Scene(int device)
      : ring_device(device), other_device(1 - device), runtime(reset()), gate(make_gate(*runtime)) {
    runtime->set_device(other_device);
    ring = std::make_unique<Ring>(runtime, vitcache::RingOptions{kCapacity, 2, kPiece, ring_device, {}});
  }

  ~Scene() {
    open_gate();
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
    auto* gate = static_cast<std::uint32_t*>(runtime.alloc_host(sizeof(std::uint32_t)));
    *gate = 0;
    return gate;
  }

  // Work that is queued on `stream` from now on waits for `open_gate`.
  void wait_for_gate(Stream stream) const { runtime->wait_value(stream, gate, 1); }
  void open_gate() const { __atomic_store_n(gate, 1U, __ATOMIC_RELEASE); }

  void check_current_device() const { CHECK_EQUAL(runtime->device(), other_device); }

  int ring_device, other_device;
  SharedRuntime runtime;
  std::uint32_t* gate;
  std::unique_ptr<Ring> ring;
};

bool is_done_within(const SharedRuntime& runtime, Event event, Seconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
    if (runtime->is_done(event)) return true;
    std::this_thread::yield();
  }
  return false;
}

void wait_on_a_default_stream_blocks_only_the_rings_device(int ring_device) {
  const Scene scene(ring_device);
  const Stream ring_default(nullptr, scene.ring_device), other_default(nullptr, scene.other_device);
  const Event ring_event = scene.runtime->create_event(scene.ring_device);
  const Event other_event = scene.runtime->create_event(scene.other_device);
  scene.wait_for_gate(scene.ring->stream());
  const Copy copy(*scene.ring, kPiece, 1);
  std::byte read{};
  copy.ticket->wait(ring_default);
  scene.runtime->copy_async(&read, &copy.destination[kPiece - 1], 1, ring_default);
  scene.runtime->record(ring_event, ring_default);
  scene.runtime->record(other_event, other_default);
  CHECK(is_done_within(scene.runtime, other_event, Seconds(20)));
  CHECK(!scene.runtime->is_done(ring_event));
  scene.open_gate();
  scene.runtime->synchronize(ring_event);
  CHECK(read == copy.source[kPiece - 1]);
  copy.check();
  scene.runtime->destroy_event(ring_event);
  scene.runtime->destroy_event(other_event);
}

void wait_on_a_stream_of_another_device_orders_it_after_the_copy(int ring_device) {
  const Scene scene(ring_device);
  const Stream reader = scene.runtime->create_stream(scene.other_device);
  scene.wait_for_gate(scene.ring->stream());
  const Copy copy(*scene.ring, kPiece, 1);
  std::byte read{};
  copy.ticket->wait(reader);
  scene.runtime->copy_async(&read, &copy.destination[0], 1, reader);
  scene.open_gate();
  scene.runtime->synchronize_stream(reader);
  CHECK(read == copy.source[0]);
  scene.runtime->destroy_stream(reader);
}

void copy_after_a_default_stream_waits_for_the_rings_device(int ring_device) {
  const Scene scene(ring_device);
  scene.wait_for_gate(Stream{nullptr, scene.ring_device});
  const Copy copy(*scene.ring, kPiece, 1, {}, Stream{nullptr, scene.ring_device});
  while (!copy.ticket->source_read()) std::this_thread::yield();
  CHECK(!copy.ticket->done());
  scene.open_gate();
  copy.check();
  CHECK_THROWS(Copy(*scene.ring, 1, 2, {}, Stream{nullptr, scene.other_device}), std::invalid_argument,
               "after is a stream of device " + std::to_string(scene.other_device) +
                   ", the ring copies to device " + std::to_string(scene.ring_device));
}

void a_ring_refuses_a_stream_of_another_device() {
  const Scene scene(1);
  CHECK_THROWS(Ring(scene.runtime, vitcache::RingOptions{kCapacity, 2, kPiece, 1, Stream{nullptr, 0}}),
               std::invalid_argument, "stream is a stream of device 0, the ring copies to device 1");
}

// The copies need more bytes than the ring has, in threads with either current device.
void slots_retire_and_events_are_reused_in_every_thread(int ring_device) {
  const Scene scene(ring_device);
  const auto copy_twice = [&scene](int device) {
    scene.runtime->set_device(device);
    for (unsigned seed = 0; seed < 2; ++seed) Copy(*scene.ring, 3 * kCapacity, seed).check();
    CHECK_EQUAL(scene.runtime->device(), device);
  };
  std::thread(copy_twice, scene.ring_device).join();
  const std::uint64_t events = stand_in::count().events;
  std::thread(copy_twice, scene.other_device).join();
  copy_twice(scene.other_device);
  CHECK_EQUAL(stand_in::count().events, events);
  CHECK_EQUAL(scene.ring->stats().used_bytes, 0U);
}

// CUDA needs the stream's device to be current only for default streams. Calls on other streams, and calls
// that take only events, do not set the device.
void every_call_leaves_the_current_device_unchanged(int ring_device) {
  const Scene scene(ring_device);
  const vitcache::CudaRuntime& runtime = *scene.runtime;
  const Copy copy(*scene.ring, kPiece, 1);
  copy.check();
  const Event event = runtime.create_event(scene.ring_device);
  const Stream stream(nullptr, scene.ring_device);
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
      {"cudaStreamCreateWithFlags",
       [&] { runtime.destroy_stream(runtime.create_stream(scene.ring_device)); }},
      {"cudaEventCreateWithFlags", [&] { runtime.destroy_event(runtime.create_event(scene.ring_device)); }},
      {"cudaEventRecord", [&] { runtime.record(event, stream); }},
      {"cudaStreamIsCapturing", [&] { static_cast<void>(runtime.is_capturing(stream)); }},
      {"cudaStreamSynchronize", [&] { runtime.synchronize_stream(stream); }},
      {"cudaMemcpyAsync", [&] { runtime.copy_async(&to, &from, 1, stream); }},
      {"cudaMemcpyBatchAsync",
       [&] { runtime.copy_batch_async({&to_in_batch}, {&from}, {1}, scene.ring->stream()); }, false},
      {"cuStreamWaitValue32_v2", [&] { runtime.wait_value(stream, scene.gate, 0); }},
      {"cudaHostRegister",
       [&] {
         const Ring made(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, scene.ring_device, {}});
       }},
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
  VITCACHE_CONTROL(fail)("cudaSetDevice", 2, 999);  // the first call that restores the device
  copy.ticket->wait(stream);
  scene.check_current_device();
  runtime.destroy_event(event);
  runtime.synchronize_stream(stream);
  runtime.synchronize_stream(scene.ring->stream());
  scene.check_current_device();
}

void a_ring_page_locks_while_its_device_is_current(int ring_device) {
  const Scene scene(ring_device);
  VITCACHE_CONTROL(reset)();
  VITCACHE_CONTROL(set_devices)(2);
  const Ring made(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, scene.ring_device, {}});
  CHECK_EQUAL(stand_in::count().locking_devices, std::uint64_t{1} << scene.ring_device);
}

// A wait for a value is a call of the driver. It needs a CUDA context, which a new thread does not have.
void copy_in_a_thread_without_a_context_succeeds(int ring_device) {
  const Scene scene(ring_device);
  Copy(*scene.ring, kPiece, 1).check();  // in a thread that has a context
  std::thread([&scene] { Copy(*scene.ring, kPiece, 2).check(); }).join();
}

void copy_refuses_a_ticket_of_another_device() {
  const Scene scene(1);
  Ring ring(scene.runtime, vitcache::RingOptions{kCapacity, 1, kPiece, 0, {}});
  Bytes memory(1);
  const auto view = std::make_shared<const vitcache::StridedView>(
      memory.data(), 1, std::vector<std::int64_t>{1}, std::vector<std::int64_t>{1});
  const auto ticket = scene.ring->make_ticket();
  CHECK_THROWS(ring.copy(*ticket, memory.data(), view, vitcache::Cast::kNone, {}, {}), std::invalid_argument,
               "the ticket is of device 1, the ring copies to device 0");
}

// On a lost device every call fails, even the call that restores the current device.
void close_returns_on_a_lost_device(int ring_device) {
  const Scene scene(ring_device);
  VITCACHE_CONTROL(fail_copy)(1);
  const Copy copy(*scene.ring, kPiece, 1);
  while (copy.ticket->is_in_flight()) std::this_thread::yield();
  scene.ring->close();
  VITCACHE_CONTROL(reset)();
  VITCACHE_CONTROL(set_devices)(2);
  scene.runtime->set_device(scene.other_device);
}

}  // namespace

int main() {
  for (const int ring_device : {0, 1}) {
    wait_on_a_default_stream_blocks_only_the_rings_device(ring_device);
    wait_on_a_stream_of_another_device_orders_it_after_the_copy(ring_device);
    copy_after_a_default_stream_waits_for_the_rings_device(ring_device);
    slots_retire_and_events_are_reused_in_every_thread(ring_device);
    every_call_leaves_the_current_device_unchanged(ring_device);
    a_ring_page_locks_while_its_device_is_current(ring_device);
    copy_in_a_thread_without_a_context_succeeds(ring_device);
    close_returns_on_a_lost_device(ring_device);
  }
  copy_refuses_a_ticket_of_another_device();
  a_ring_refuses_a_stream_of_another_device();
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
}
