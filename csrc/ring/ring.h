// The pinned ring: features from ordinary memory to the device through page-locked memory, never blocking.
//
// A copy is cut into pieces, and each goes through a slot, a range of the ring's bytes:
//   reserved   the copying thread has set the bytes aside, behind those of the piece before it
//   filling    worker threads copy the source into them, cast on the way, and store the slot's flag
//   submitted  the copying thread has queued on the ring's stream: wait for the flag, copy, record an event;
//              it may do so while the slot is still being filled, so it waits for neither
//   retired    the event has passed; slots retire in the order in which they were reserved
// A slot is reserved only where no slot that has not retired lies. Where there is no room the copying thread
// waits, in line behind those that came before it.
//
// Thread rule: any thread may copy, at any time; the pieces of copies made at once go through the ring in
// turns. No lock is held over a call of the runtime, nor over a fill. After a fork the child cannot use it:
// calls throw, but `release` and `close`, which do nothing there, and it is to be leaked.
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

#include "ring/event_pool.h"
#include "ring/fill_workers.h"
#include "ring/pinned_region.h"
#include "ring/slot_flags.h"
#include "ring/ticket.h"
#include "runtime/cuda_runtime.h"
#include "runtime/mutex.h"
#include "runtime/owned_stream.h"

namespace vitcache {

struct RingOptions {
  std::size_t capacity_bytes;
  int num_threads;
  std::size_t piece_bytes;
  int device;
  std::optional<Stream> stream;  // of that device, to outlive the ring; none: the ring makes one
};

struct RingStats {
  std::size_t capacity_bytes;
  std::size_t used_bytes;  // of slots that have not retired, and what is skipped at the end of the ring
  std::size_t num_slots;
  std::size_t num_unread;  // slots that are still being filled
  std::uint64_t copies;
  std::uint64_t copied_bytes;
  double construction_seconds;
};

// The time to wait for room ran out.
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

  // Copies the elements of `source` in order to `destination`, behind the work that `after`, a stream of the
  // ring's device, has been given so far; none: at once. The source must stay and must not change until
  // `Ticket::source_read`, the destination until `Ticket::done`. A piece that cannot be queued fails the
  // ticket, and those after it are left out. Throws RingTimeout, std::invalid_argument if `after` or `ticket`
  // is of another device, and std::runtime_error if the ring was closed, the process was forked off, or
  // `after` is being captured in a graph; what was queued until then goes on, and `ticket` tells of it.
  void copy(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
            Cast cast, std::optional<Stream> after, std::optional<std::chrono::duration<double>> timeout)
      VITCACHE_EXCLUDES(mutex_);

  std::shared_ptr<Ticket> make_ticket() const { return std::make_shared<Ticket>(runtime_, device_); }

  // Whether this process was forked off the one that made the ring: then it must not be destroyed.
  bool is_forked() const;

  // While held no slot retires. Holds count.
  void hold() VITCACHE_EXCLUDES(mutex_);
  void release() VITCACHE_EXCLUDES(mutex_);

  // Waits for all copies, whether held or not, and refuses others. Once; later calls return at once.
  void close() VITCACHE_EXCLUDES(mutex_);

  RingStats stats() VITCACHE_EXCLUDES(mutex_);
  Stream stream() const { return stream_; }
  int num_threads() const { return num_threads_; }

  // Throws std::runtime_error if the books do not agree.
  void check_integrity() VITCACHE_EXCLUDES(mutex_);

 private:
  static constexpr std::size_t kAlignment = 256;

  // Bytes are counted from the making of the ring; modulo the capacity they are a place in it.
  struct Slot {
    std::uint64_t sequence;
    std::uint64_t claim;  // where the slot before it ends
    std::uint64_t begin;  // behind what is skipped so that a slot does not wrap
    std::uint64_t end;
    bool submitted = false;
    SharedEvent event;  // none where nothing was queued that reads the slot
  };
  using Deadline = std::optional<Clock::time_point>;
  using Line = std::list<std::size_t>;

  void copy_pieces(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
                   Cast cast, const Deadline& deadline);
  bool send_piece(Ticket& ticket, const Slot& slot, std::byte* destination, std::size_t bytes);
  Slot reserve(std::size_t bytes, const Deadline& deadline) VITCACHE_EXCLUDES(mutex_);
  Slot wait_for_room(const Line::iterator& me, const Deadline& deadline) VITCACHE_REQUIRES(mutex_);
  void leave_line(const Line::iterator& me) VITCACHE_REQUIRES(mutex_);
  Slot next_slot(std::size_t bytes) const VITCACHE_REQUIRES(mutex_);
  bool fits(const Slot& slot) const VITCACHE_REQUIRES(mutex_);
  void submitted(std::uint64_t sequence, SharedEvent event) VITCACHE_EXCLUDES(mutex_);
  bool retire_one(bool despite_hold) VITCACHE_REQUIRES(mutex_);
  bool has_passed(const SharedEvent& event) const VITCACHE_EXCLUDES(mutex_);
  std::size_t num_unread() const VITCACHE_REQUIRES(mutex_);
  std::byte* place(const Slot& slot) const { return region_->data() + slot.begin % capacity_; }
  std::size_t used_bytes() const VITCACHE_REQUIRES(mutex_);
  std::string describe_slots() const VITCACHE_REQUIRES(mutex_);
  void check_process() const;
  void enter() VITCACHE_EXCLUDES(mutex_);
  void leave() VITCACHE_EXCLUDES(mutex_);

  SharedRuntime runtime_;
  pid_t process_;
  int device_;
  int num_threads_;
  std::uint64_t capacity_ = 0;
  std::uint64_t piece_bytes_;
  std::shared_ptr<EventPool> events_;
  std::unique_ptr<PinnedRegion> region_;
  std::unique_ptr<SlotFlags> flags_;
  std::unique_ptr<OwnedStream> own_stream_;  // none where a stream was lent
  Stream stream_;
  std::unique_ptr<FillWorkers> workers_;

  Mutex mutex_;
  Condition changed_;
  std::deque<Slot> slots_ VITCACHE_GUARDED_BY(mutex_);  // not retired, oldest first
  Line line_ VITCACHE_GUARDED_BY(mutex_);  // of threads that ask for room, with the bytes that each asks for
  int copying_ VITCACHE_GUARDED_BY(mutex_) = 0;  // threads in `copy`
  std::uint64_t next_sequence_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t next_byte_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t copies_ VITCACHE_GUARDED_BY(mutex_) = 0;
  std::uint64_t copied_bytes_ VITCACHE_GUARDED_BY(mutex_) = 0;
  int holds_ VITCACHE_GUARDED_BY(mutex_) = 0;
  bool closed_ VITCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace vitcache
