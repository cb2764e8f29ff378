// Rings and tickets with default streams, and while streams are captured in graphs.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "ring/ring.h"
#include "ring_copy.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using stand_in::CaptureMode;
using stand_in::Gate;
using vitcache::CudaError;
using vitcache::Event;
using vitcache::Ring;
using vitcache::SharedRuntime;
using vitcache::Stream;

constexpr std::size_t kCapacity = 1 << 16;
constexpr std::size_t kPiece = 1 << 13;

Stream default_stream(std::uintptr_t handle) { return Stream(reinterpret_cast<void*>(handle), 0); }

std::vector<Stream> default_streams() { return {default_stream(0), default_stream(1), default_stream(2)}; }

std::unique_ptr<Ring> make_ring(std::optional<Stream> stream = {}) {
  return std::make_unique<Ring>(stand_in::open(), vitcache::RingOptions{kCapacity, 2, kPiece, 0, stream});
}

void copy_runs_after_a_default_stream_of_its_thread() {
  const SharedRuntime runtime = stand_in::open();
  const auto ring = make_ring();
  for (const Stream after : default_streams()) {
    Gate gate(runtime);
    gate.hold(after);
    const Copy copy(*ring, kPiece, 1, {}, after);
    while (!copy.ticket->source_read()) std::this_thread::yield();
    CHECK(!copy.ticket->done());
    gate.open();
    copy.check();
  }
}

// Another thread's default stream is another stream, although its handle is the same.
void copy_does_not_run_after_the_default_stream_of_another_thread() {
  const SharedRuntime runtime = stand_in::open();
  const auto ring = make_ring();
  Gate gate(runtime);
  gate.hold(stand_in::per_thread_stream());
  std::thread([&ring] { Copy(*ring, kPiece, 1, {}, stand_in::per_thread_stream()).check(); }).join();
  gate.open();
  runtime->synchronize_stream(stand_in::per_thread_stream());
}

void wait_orders_each_default_stream_after_the_copy() {
  const SharedRuntime runtime = stand_in::open();
  const Stream stream = runtime->create_stream(0);
  const auto ring = make_ring(stream);
  for (const Stream reader : default_streams()) {
    Gate gate(runtime);
    gate.hold(stream);
    const Copy copy(*ring, kPiece, 1);
    const auto read_last = [&] {
      std::byte read{};
      copy.ticket->wait(reader);
      runtime->copy_async(&read, &copy.destination[kPiece - 1], 1, reader);
      gate.open();
      runtime->synchronize_stream(reader);
      CHECK(read == copy.source[kPiece - 1]);
    };
    std::thread(read_last).join();  // in a thread whose default stream is not the copying thread's
    copy.check();
  }
  runtime->destroy_stream(stream);
}

// The pieces of one ring are then on the default streams of several threads. Slots retire in order all the
// same, and nothing is overwritten while it is read.
void a_ring_on_a_default_stream_serves_several_threads() {
  const SharedRuntime runtime = stand_in::open();
  for (const Stream stream : default_streams()) {
    const auto ring = make_ring(stream);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 3; ++seed)
      threads.emplace_back([&ring, seed] {
        for (unsigned round = 0; round < 3; ++round) Copy(*ring, 2 * kCapacity, 10 * seed + round).check();
      });
    for (std::thread& thread : threads) thread.join();
    ring->check_integrity();
    CHECK_EQUAL(ring->stats().used_bytes, 0U);
  }
}

void a_ring_on_a_default_stream_outlives_the_thread_that_copied() {
  const auto ring = make_ring(stand_in::per_thread_stream());
  std::optional<Copy> copy;
  std::thread([&] { copy.emplace(*ring, 3 * kCapacity, 1); }).join();
  copy->check();
}

struct Captured {
  const char* name;
  Stream stream;
};

// While another thread captures a graph, every call of a ring and its tickets works, adds nothing to the
// graph, and leaves the capture valid.
void a_ring_leaves_a_capture_of_another_thread_valid() {
  const SharedRuntime runtime = stand_in::open();
  const Stream captured = runtime->create_stream(0), reader = runtime->create_stream(0);
  for (const Stream stream : {captured, stand_in::per_thread_stream()})
    for (const CaptureMode mode : {stand_in::kGlobal, stand_in::kThreadLocal, stand_in::kRelaxed}) {
      CHECK_EQUAL(stand_in::begin_capture(stream, mode), 0);
      std::thread([&] {
        const auto ring = make_ring();
        const Copy copy(*ring, 3 * kCapacity, 1, {}, reader);
        copy.ticket->wait(reader);
        copy.ticket->wait(stand_in::per_thread_stream());  // of this thread, which captures nothing
        CHECK(copy.ticket->is_in_flight() || copy.ticket->done());
        copy.check();
        CHECK_EQUAL(ring->stats().used_bytes, 0U);
      }).join();
      std::uint64_t num_captured = 1;
      CHECK_EQUAL(stand_in::end_capture(stream, &num_captured), 0);
      CHECK_EQUAL(num_captured, 0U);
    }
  runtime->destroy_stream(captured);
  runtime->destroy_stream(reader);
}

// The same calls in the thread that captures.
void a_ring_works_in_a_capturing_thread_and_refuses_the_captured_stream() {
  const SharedRuntime runtime = stand_in::open();
  const Stream captured = runtime->create_stream(0);
  const auto ring = make_ring();
  const Copy earlier(*ring, kPiece, 1);
  CHECK_EQUAL(stand_in::begin_capture(captured, stand_in::kGlobal), 0);
  Copy(*ring, 3 * kCapacity, 2).check();
  CHECK_THROWS(Copy(*ring, 1, 2, {}, captured), std::runtime_error, "cannot be captured in a CUDA graph");
  CHECK_THROWS(earlier.ticket->wait(captured), std::runtime_error, "cannot be captured in a CUDA graph");
  earlier.check();
  CHECK_EQUAL(ring->stats().used_bytes, 0U);
  std::uint64_t num_captured = 1;
  CHECK_EQUAL(stand_in::end_capture(captured, &num_captured), 0);
  CHECK_EQUAL(num_captured, 0U);
  runtime->destroy_stream(captured);
}

// CUDA forbids every use of the legacy stream while a blocking stream is captured. The ring finds that out by
// a question that leaves the capture valid.
void a_ring_refuses_the_legacy_stream_while_a_blocking_stream_is_captured() {
  const SharedRuntime runtime = stand_in::open();
  const auto ring = make_ring();
  const Copy earlier(*ring, kPiece, 1);
  CHECK_EQUAL(stand_in::begin_capture(stand_in::per_thread_stream(), stand_in::kThreadLocal), 0);
  const Copy copy(*ring, 1, 2, {}, default_stream(0));
  CHECK_THROWS(copy.ticket->synchronize(), CudaError, "cudaErrorStreamCaptureImplicit (906)");
  CHECK_THROWS(earlier.ticket->wait(default_stream(0)), CudaError, "(906)");
  CHECK_EQUAL(stand_in::end_capture(stand_in::per_thread_stream()), 0);
  Copy(*ring, 1, 2, {}, default_stream(0)).check();
}

}  // namespace

int main() {
  copy_runs_after_a_default_stream_of_its_thread();
  copy_does_not_run_after_the_default_stream_of_another_thread();
  wait_orders_each_default_stream_after_the_copy();
  a_ring_on_a_default_stream_serves_several_threads();
  a_ring_on_a_default_stream_outlives_the_thread_that_copied();
  a_ring_leaves_a_capture_of_another_thread_valid();
  a_ring_works_in_a_capturing_thread_and_refuses_the_captured_stream();
  a_ring_refuses_the_legacy_stream_while_a_blocking_stream_is_captured();
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
}
