// The ring on the stand-in: order, full rings, failures, and concurrent threads.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "ring/ring.h"
#include "ring_copy.h"
#include "runtime/error.h"
#include "runtime/pinned_region.h"
#include "stand_in.h"

namespace {

using stand_in::Pause;
using vitcache::CudaError;
using vitcache::Ring;
using vitcache::Stream;

constexpr std::size_t kCapacity = 1 << 16;
constexpr std::size_t kPiece = 1 << 13;

std::unique_ptr<Ring> make_ring(std::size_t capacity = kCapacity, std::size_t piece = kPiece) {
  return std::make_unique<Ring>(stand_in::open(), vitcache::RingOptions{capacity, 2, piece, 0, {}});
}

void copies_of_every_size_write_all_bytes() {
  const auto ring = make_ring();
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{255}, std::size_t{257},
                                  kPiece - 1, kPiece, kPiece + 1, kCapacity, 3 * kCapacity + 17}) {
    const Copy copy(*ring, bytes, static_cast<unsigned>(bytes));
    copy.check();
    ring->check_integrity();
  }
  CHECK_EQUAL(ring->stats().used_bytes, 0U);
}

// Several threads fill the chunks of a piece. The flag must publish the bytes of all of them.
void copy_of_pieces_with_many_chunks_writes_all_bytes() {
  const auto ring = make_ring(std::size_t{8} << 20, std::size_t{4} << 20);
  for (unsigned seed = 0; seed < 5; ++seed) Copy(*ring, (std::size_t{7} << 20) + 13, seed).check();
}

void copy_to_a_full_ring_times_out_and_describes_the_slots() {
  const auto ring = make_ring();
  const Pause pause;
  const Copy first(*ring, kCapacity - kPiece, 1, Seconds(10));  // it fits although no stream runs
  const vitcache::RingStats stats = ring->stats();
  CHECK_EQUAL(stats.used_bytes, kCapacity - kPiece);
  CHECK_EQUAL(stats.num_slots, kCapacity / kPiece - 1);
  CHECK_THROWS(Copy(*ring, 2 * kPiece, 2, Seconds(0)), vitcache::RingTimeout,
               "timed out while waiting for a slot of 8192 bytes: 8 slots use 65536 of 65536 bytes");
  ring->check_integrity();
  VITCACHE_CONTROL(pause)(0);
  Copy(*ring, kCapacity, 3, Seconds(60)).check();
  first.check();
}

void a_ring_on_hold_retires_no_slot() {
  const auto ring = make_ring();
  ring->hold();
  const Copy copy(*ring, kCapacity, 1);
  copy.check();
  CHECK_EQUAL(ring->stats().used_bytes, kCapacity);
  CHECK_THROWS(Copy(*ring, 1, 2, Seconds(0)), vitcache::RingTimeout, "the ring is on hold");
  ring->release();
  Copy(*ring, 1, 2, Seconds(60)).check();
}

struct Interrupted {};

vitcache::Interrupts interrupt_at_once() {
  return vitcache::Interrupts([] { throw Interrupted(); });
}

template <typename Call>
bool is_interrupted(Call call) {
  try {
    call();
  } catch (const Interrupted&) {
    return true;
  }
  return false;
}

std::shared_ptr<const vitcache::StridedView> view_of(const Bytes& bytes) {
  return std::make_shared<const vitcache::StridedView>(
      bytes.data(), 1, std::vector<std::int64_t>{static_cast<std::int64_t>(bytes.size())},
      std::vector<std::int64_t>{1});
}

void interrupts_end_every_wait_and_a_second_close_does_the_rest() {
  const auto ring = make_ring();
  Bytes byte(1), late(1);
  const auto ticket = ring->make_ticket();
  {
    const Pause pause;
    const Copy full(*ring, kCapacity, 1);
    CHECK(is_interrupted([&] {
      ring->copy(*ticket, late.data(), view_of(byte), vitcache::Cast::kNone, {}, Seconds(60),
                 interrupt_at_once());
    }));
    CHECK(is_interrupted([&] { full.ticket->synchronize(interrupt_at_once()); }));
    CHECK(is_interrupted([&] { ring->close(interrupt_at_once()); }));
    CHECK(ring->is_closed());
    CHECK_THROWS(ring->stats(), std::runtime_error, "the ring was closed");
    VITCACHE_CONTROL(pause)(0);
    full.check();
  }
  ring->close();
  CHECK(ticket->done() && ticket->source_read());
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
}

// The code of an interrupt copies through the full ring, and closes it.
void an_interrupt_of_copy_may_copy_and_may_not_close() {
  const auto ring = make_ring();
  Bytes byte = random_bytes(1, 7), late(1);
  const auto ticket = ring->make_ticket();
  const Copy full(*ring, kCapacity, 1);
  ring->hold();
  full.check();
  bool has_copied = false;
  ring->copy(*ticket, late.data(), view_of(byte), vitcache::Cast::kNone, {}, Seconds(60),
             vitcache::Interrupts([&] {
               CHECK_THROWS(ring->close(), std::runtime_error, "close was called from inside copy_to");
               if (!std::exchange(has_copied, true)) ring->release();
               Copy(*ring, kCapacity, 2, Seconds(60)).check();
             }));
  CHECK(has_copied);
  ticket->synchronize();
  CHECK(late == byte);
  ring->check_integrity();
}

void copy_waits_for_the_after_stream_and_readers_for_the_ticket() {
  const auto ring = make_ring();
  const vitcache::SharedRuntime runtime = stand_in::open();
  const Stream stream = runtime->create_stream(0);
  auto* gate = static_cast<std::uint32_t*>(runtime->alloc_host(4));
  *gate = 0;
  runtime->wait_value(stream, gate, 1);
  const Copy copy(*ring, 100, 1, {}, stream);
  while (!copy.ticket->source_read()) std::this_thread::yield();
  CHECK(!copy.ticket->done());
  const Stream reader = runtime->create_stream(0);
  std::byte read{};
  copy.ticket->wait(reader);
  runtime->copy_async(&read, &copy.destination[99], 1, reader);
  __atomic_store_n(gate, 1U, __ATOMIC_RELEASE);
  runtime->synchronize_stream(reader);
  CHECK(read == copy.source[99]);
  copy.check();
  runtime->free_host(gate);
  runtime->destroy_stream(stream);
  runtime->destroy_stream(reader);
}

void a_ring_does_not_destroy_a_lent_stream() {
  const vitcache::SharedRuntime runtime = stand_in::open();
  const Stream stream = runtime->create_stream(0);
  const vitcache::Event event = runtime->create_event(0);
  for (unsigned seed = 0; seed < 2; ++seed) {
    const Ring ring(runtime, vitcache::RingOptions{kCapacity, 2, kPiece, 0, stream});
    CHECK(ring.stream().handle == stream.handle);
  }
  runtime->record(event, stream);  // as torch does when it frees memory that the ring wrote to
  runtime->synchronize(event);
  runtime->destroy_event(event);
  runtime->destroy_stream(stream);
}

void copy_makes_no_synchronizing_call() {
  const auto ring = make_ring();
  VITCACHE_CONTROL(reset)();
  const Copy copy(*ring, 5 * kCapacity, 1);
  CHECK_EQUAL(stand_in::count().synchronizing_calls, 0U);
  copy.check();
}

void a_failed_call_fails_only_its_ticket() {
  for (const char* entry :
       {"cudaMemcpyAsync", "cuStreamWaitValue32_v2", "cudaEventRecord", "cudaEventCreateWithFlags"})
    for (const int nth : {1, 2, 3}) {
      const auto ring = make_ring();
      VITCACHE_CONTROL(fail)(entry, nth, 999);
      const Copy failed(*ring, 4 * kPiece, 1);
      VITCACHE_CONTROL(reset)();
      CHECK_THROWS(failed.ticket->synchronize(), CudaError, "(999)");
      CHECK_THROWS(failed.ticket->wait(Stream{nullptr, 0}), CudaError, "(999)");
      CHECK_THROWS(failed.ticket->done(), CudaError, "(999)");
      Copy(*ring, 2 * kCapacity, 2, Seconds(60)).check();
      while (!failed.ticket->source_read()) std::this_thread::yield();
      ring->check_integrity();
      CHECK_EQUAL(ring->stats().used_bytes, 0U);
    }
}

void tickets_of_a_lost_device_throw_and_the_ring_closes() {
  auto ring = make_ring();
  VITCACHE_CONTROL(fail_copy)(3);
  const Copy first(*ring, 4 * kPiece, 1);
  CHECK_THROWS(first.ticket->synchronize(), CudaError, "cudaErrorIllegalAddress (700)");
  const Copy second(*ring, 4 * kPiece, 2);
  CHECK_THROWS(second.ticket->done(), CudaError, "(700)");
  ring.reset();
  VITCACHE_CONTROL(reset)();
}

void a_ring_that_cannot_page_lock_throws_and_frees_its_memory() {
  VITCACHE_CONTROL(limit_locked_bytes)(kCapacity - 1);
  CHECK_THROWS(make_ring(), vitcache::OutOfMemory, "cannot page-lock 65536 bytes");
  VITCACHE_CONTROL(limit_locked_bytes)(kCapacity + 1);
  CHECK_THROWS(make_ring(), vitcache::OutOfMemory, "cannot page-lock");
  VITCACHE_CONTROL(reset)();
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
  CHECK_THROWS(make_ring(1), std::invalid_argument, "capacity_bytes is 1, it must be at least 256");
}

void a_ticket_works_after_its_ring_is_destroyed() {
  auto ring = make_ring();
  const Copy copy(*ring, kPiece, 1);
  ring.reset();
  copy.check();
  copy.ticket->wait(Stream{nullptr, 0});
  CHECK(stand_in::count().events >= 1U);
}

void copy_that_waits_for_a_slot_throws_when_the_ring_closes() {
  const auto ring = make_ring();
  ring->hold();
  const Copy copy(*ring, kCapacity, 1);
  std::string message;
  std::thread waiting([&] {
    try {
      const Copy late(*ring, 1, 2);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
  });
  while (ring->stats().copies < 2) std::this_thread::yield();
  ring->close();
  ring->close();
  waiting.join();
  CHECK_EQUAL(message, "the ring was closed");
  CHECK_THROWS(Copy(*ring, 1, 3), std::runtime_error, "the ring was closed");
  copy.check();
}

void copy_in_a_forked_child_throws() {
  const auto ring = make_ring();
  const pid_t child = fork();
  if (child == 0) {
    std::string message;
    try {
      const Copy copy(*ring, 1, 1);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    _exit(ring->is_forked() && message.find("the ring belongs to process") == 0 ? 7 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 7);
}

// If the child shared a page, the parent's next write would move the data to a copy (copy-on-write), and the
// device would read the old page.
void a_pinned_region_is_not_mapped_in_a_forked_child() {
  const vitcache::PinnedRegion region(stand_in::open(), kCapacity, 2);
  const pid_t child = fork();
  if (child == 0) {
    std::vector<unsigned char> pages(kCapacity);
    _exit(mincore(region.data(), region.bytes(), pages.data()) == -1 && errno == ENOMEM ? 7 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 7);
}

// The pieces of a copy that is larger than the ring take turns with small copies.
void small_copies_complete_before_a_large_copy_is_queued() {
  const auto ring = make_ring();
  VITCACHE_CONTROL(delay_copies)(200);
  std::atomic<bool> large_is_queued{false};
  std::thread large([&] {
    const Copy copy(*ring, 40 * kCapacity, 1);
    large_is_queued = true;
    copy.check();
  });
  while (ring->stats().num_slots < kCapacity / kPiece) std::this_thread::yield();
  for (unsigned i = 0; i < 5; ++i) Copy(*ring, 100, i).check();
  CHECK(!large_is_queued);
  VITCACHE_CONTROL(reset)();
  large.join();
}

// Several producers copy all sizes, some with a timeout. Another thread holds, checks and releases the ring,
// and plants failures if `failing`.
void concurrent_threads_leave_the_ring_consistent(bool failing) {
  auto ring = make_ring(kCapacity, 1 << 12);
  std::atomic<bool> producers_ended{false};
  std::atomic<int> failed{0}, timeouts{0};
  std::vector<std::thread> threads;
  for (unsigned producer = 0; producer < 4; ++producer)
    threads.emplace_back([&, producer] {
      std::mt19937 random(producer);
      std::vector<std::unique_ptr<Copy>> copies;
      for (int i = 0; i < 60; ++i) {
        const std::size_t bytes = random() % 8 == 0 ? random() % (2 * kCapacity) : random() % 5000;
        try {
          auto copy = std::make_unique<Copy>(*ring, bytes, random(),
                                             random() % 4 == 0 ? std::optional(Seconds(1e-4)) : std::nullopt);
          copies.push_back(std::move(copy));
        } catch (const vitcache::RingTimeout&) {
          ++timeouts;
        }
        if (random() % 3 == 0 && !copies.empty()) {
          try {
            copies.back()->check();
          } catch (const CudaError&) {
            ++failed;
            while (!copies.back()->ticket->source_read()) std::this_thread::yield();
          }
        }
      }
      for (const auto& copy : copies) {
        try {
          copy->check();
        } catch (const CudaError&) {
          ++failed;
        }
        while (!copy->ticket->source_read()) std::this_thread::yield();
      }
      // The pieces of a failed copy that were queued may still write.
      stand_in::open()->synchronize_stream(ring->stream());
    });
  threads.emplace_back([&] {
    while (!producers_ended) {
      ring->hold();
      ring->check_integrity();
      ring->release();
      ring->stats();
      if (failing) VITCACHE_CONTROL(fail)("cudaMemcpyAsync", 20, 999);
      std::this_thread::yield();
    }
  });
  for (std::size_t i = 0; i + 1 < threads.size(); ++i) threads[i].join();
  producers_ended = true;
  threads.back().join();
  VITCACHE_CONTROL(reset)();
  ring->check_integrity();
  CHECK(failing || failed == 0);
  ring.reset();
}

}  // namespace

int main() {
  copies_of_every_size_write_all_bytes();
  copy_of_pieces_with_many_chunks_writes_all_bytes();
  copy_to_a_full_ring_times_out_and_describes_the_slots();
  a_ring_on_hold_retires_no_slot();
  interrupts_end_every_wait_and_a_second_close_does_the_rest();
  an_interrupt_of_copy_may_copy_and_may_not_close();
  copy_waits_for_the_after_stream_and_readers_for_the_ticket();
  a_ring_does_not_destroy_a_lent_stream();
  copy_makes_no_synchronizing_call();
  a_failed_call_fails_only_its_ticket();
  tickets_of_a_lost_device_throw_and_the_ring_closes();
  a_ring_that_cannot_page_lock_throws_and_frees_its_memory();
  a_ticket_works_after_its_ring_is_destroyed();
  copy_that_waits_for_a_slot_throws_when_the_ring_closes();
  copy_in_a_forked_child_throws();
  a_pinned_region_is_not_mapped_in_a_forked_child();
  small_copies_complete_before_a_large_copy_is_queued();
  concurrent_threads_leave_the_ring_consistent(false);
  concurrent_threads_leave_the_ring_consistent(true);
  CHECK_EQUAL(stand_in::count().locked_bytes, 0U);
  CHECK_EQUAL(stand_in::count().streams, 0U);
  CHECK_EQUAL(stand_in::count().events, 0U);
}
