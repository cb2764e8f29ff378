// The pinned ring: copies features from pageable memory to the device through page-locked memory.
//
// A copy is cut into pieces. Each piece uses one slot, a byte range of the ring. A slot has these states:
//   reserved   the copying thread has reserved the bytes, after those of the previous slot
//   filling    worker threads copy (and cast, if requested) the source into the slot, then store its flag
//   submitted  the copying thread has queued on the ring's stream: wait for the flag, copy, record an event.
//              The slot may still be filling: the copying thread waits neither for the fill nor for the copy
//   retired    the event is complete; slots retire in the order in which they were reserved
// A slot never overlaps a slot that has not retired. If the ring has too few free bytes, or the maximum
// number of slots, the copying thread waits. Waiting threads reserve in the order in which they began to
// wait.
//
// Thread rule: any thread may copy, at any time. Copies that run at the same time take turns, piece by piece.
// No lock is held during a call of the runtime, during a fill, or while a waiting thread checks for
// interrupts. So the code of an interrupt may call any method. A forked child cannot use the ring: `copy`,
// `hold`, `stats` and `check_integrity` throw, `release` and `close` do nothing. The child must leak the
// ring.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ring/fill_workers.h"
#include "ring/interrupts.h"
#include "ring/slot_flags.h"
#include "ring/ticket.h"
#include "runtime/cuda_runtime.h"
#include "runtime/event_pool.h"
#include "runtime/mutex.h"
#include "runtime/owned_stream.h"
#include "runtime/pinned_region.h"

namespace vitcache {

struct RingOptions {
  std::size_t capacity_bytes;
  int num_threads;
  std::size_t piece_bytes;
  int device;
  std::optional<Stream> stream;  // of `device`; it must outlive the ring. None: the ring creates one
};

struct RingStats {
  std::size_t capacity_bytes;
  std::size_t used_bytes;  // of slots that have not retired, and bytes skipped at the end of the ring
  std::size_t num_slots;
  std::size_t num_unread;  // slots that are still being filled
  std::uint64_t copies;
  std::uint64_t copied_bytes;
  double construction_seconds;
};

// No slot could be reserved before the timeout.
class RingTimeout : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Ring {
 public:
  using Clock = std::chrono::steady_clock;

  // Throws std::invalid_argument, OutOfMemory or CudaError.
  Ring(SharedRuntime runtime, const RingOptions& options);
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  // Queues a copy of the elements of `source`, in row-major order, to `destination`. The copy runs after all
  // work queued so far on `after`, a stream of the ring's device. Without `after` the copy waits for no other
  // stream. The source must stay alive and unchanged until `Ticket::source_read`. The destination must stay
  // alive while `Ticket::is_in_flight`. If a piece cannot be queued, the ticket fails, and later pieces are
  // not queued.
  //
  // Throws RingTimeout; std::invalid_argument if `after` or `ticket` belongs to another device; and
  // std::runtime_error if the ring is closed, the process was forked, or `after` is being captured in a
  // graph. `interrupts` may throw during a wait for a slot. Pieces that were queued before the exception
  // still run, and `ticket` covers them.
  void copy(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
            Cast cast, std::optional<Stream> after, std::optional<std::chrono::duration<double>> timeout,
            Interrupts interrupts = {}) VITCACHE_EXCLUDES(mutex_);

  std::shared_ptr<Ticket> make_ticket() const { return std::make_shared<Ticket>(runtime_, device_); }

  // Whether this process was forked from the process that created the ring. If it was, leak the ring.
  bool is_forked() const;

  // While the ring is on hold, no slot retires. Each `hold` needs one `release`.
  void hold() VITCACHE_EXCLUDES(mutex_);
  void release() VITCACHE_EXCLUDES(mutex_);

  // Refuses new copies, waits for all copies in flight, even while the ring is on hold, and frees the memory.
  // If `interrupts` ends the wait, the ring is closed to new copies, and a second call does the rest.
  // Otherwise a second call does nothing. Throws std::runtime_error in a thread that is inside of `copy`,
  // whose end `close` waits for.
  void close(Interrupts interrupts = {}) VITCACHE_EXCLUDES(mutex_);

  RingStats stats() VITCACHE_EXCLUDES(mutex_);
  bool is_closed() VITCACHE_EXCLUDES(mutex_);
  Stream stream() const { return stream_; }
  int num_threads() const { return num_threads_; }

  // Throws std::runtime_error if the slots are inconsistent.
  void check_integrity() VITCACHE_EXCLUDES(mutex_);

 private:
  static constexpr std::size_t kAlignment = 256;

  // Bytes are numbered from the construction of the ring. A number modulo the capacity is an offset in the
  // ring's memory.
  struct Slot {
    std::uint64_t sequence;
    std::uint64_t reserved_begin;  // the end of the previous slot
    std::uint64_t begin;           // after the bytes that are skipped because a slot must not wrap
    std::uint64_t end;
    bool submitted = false;
    SharedEvent event;  // empty if no queued work reads the slot
  };
  using Deadline = std::optional<Clock::time_point>;
  // A thread that waits for a slot. While it checks for interrupts it is away, and others may pass it: the
  // code of an interrupt may queue a copy, too.
  struct Waiter {
    std::size_t bytes;
    bool is_away = false;
  };
  using Waiters = std::list<Waiter>;

  void copy_pieces(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
                   Cast cast, const Deadline& deadline, Interrupts& interrupts);
  bool queue_piece(Ticket& ticket, const Slot& slot, std::byte* destination, std::size_t bytes);
  Slot reserve(std::size_t bytes, const Deadline& deadline, Interrupts& interrupts) VITCACHE_EXCLUDES(mutex_);
  Slot wait_for_slot(const Waiters::iterator& waiter, const Deadline& deadline, Interrupts& interrupts)
      VITCACHE_REQUIRES(mutex_);
  bool is_first(const Waiters::iterator& waiter) VITCACHE_REQUIRES(mutex_);
  // Unlocks the mutex for the interrupts. Throws std::runtime_error if they forked and this is the child, in
  // which the wait would never end.
  void run(Interrupts& interrupts) VITCACHE_REQUIRES(mutex_);
  void remove_waiter(const Waiters::iterator& waiter) VITCACHE_REQUIRES(mutex_);
  Slot next_slot(std::size_t bytes) const VITCACHE_REQUIRES(mutex_);
  bool fits(const Slot& slot) const VITCACHE_REQUIRES(mutex_);
  void set_submitted(std::uint64_t sequence, SharedEvent event) VITCACHE_EXCLUDES(mutex_);
  // Retires the oldest slot if its event is complete and the ring is not on hold, or `ignore_hold` is true.
  // Returns whether this thread or another has retired that slot.
  bool retire_oldest(bool ignore_hold) VITCACHE_REQUIRES(mutex_);
  bool is_complete(const SharedEvent& event) const VITCACHE_EXCLUDES(mutex_);
  std::size_t num_unread() const VITCACHE_REQUIRES(mutex_);
  std::byte* slot_data(const Slot& slot) const { return region_->data() + slot.begin % capacity_; }
  std::size_t used_bytes() const VITCACHE_REQUIRES(mutex_);
  std::string describe_slots() const VITCACHE_REQUIRES(mutex_);
  void check_process() const;
  void begin_copy() VITCACHE_EXCLUDES(mutex_);
  void end_copy() VITCACHE_EXCLUDES(mutex_);

  SharedRuntime runtime_;
  pid_t process_;
  int device_;
  int num_threads_;
  std::uint64_t capacity_ = 0;
  std::uint64_t piece_bytes_;
  std::shared_ptr<EventPool> events_;
  std::unique_ptr<PinnedRegion> region_;
  std::unique_ptr<SlotFlags> flags_;
  std::unique_ptr<OwnedStream> own_stream_;  // null if RingOptions names a stream
  Stream stream_;
  std::unique_ptr<FillWorkers> workers_;

  Mutex mutex_;
  Condition changed_;
  std::deque<Slot> slots_ VITCACHE_GUARDED_BY(mutex_);                // not retired, oldest first
  Waiters waiters_ VITCACHE_GUARDED_BY(mutex_);                       // oldest first
  std::vector<std::thread::id> copying_ VITCACHE_GUARDED_BY(mutex_);  // threads in `copy`, once per call
  int reading_ VITCACHE_GUARDED_BY(mutex_) = 0;                       // threads in `stats`
  std::uint64_t next_sequence_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t next_byte_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t copies_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t copied_bytes_ VITCACHE_GUARDED_BY(mutex_) = 0;
  int holds_ VITCACHE_GUARDED_BY(mutex_) = 0;
  bool closed_ VITCACHE_GUARDED_BY(mutex_) = false;
  bool freed_ VITCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace vitcache
