#include "ring/ring.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "runtime/device_guard.h"
#include "runtime/error.h"

namespace vitcache {
namespace {

// An event does not notify the host when it is complete, so the first waiting thread polls at this interval.
constexpr std::chrono::microseconds kPoll{50};

// A longer timeout counts as no timeout, because the clock's 64-bit nanoseconds overflow after 292 years.
constexpr std::chrono::duration<double> kLongestTimeout{1e9};

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

void check_at_least(const char* name, std::uint64_t value, std::uint64_t least) {
  VITCACHE_CHECK(
      value >= least, std::invalid_argument,
      std::string(name) + " is " + std::to_string(value) + ", it must be at least " + std::to_string(least));
}

// Throws std::invalid_argument if `stream` belongs to another device than the ring.
void check_device(const char* name, const std::optional<Stream>& stream, int device) {
  VITCACHE_CHECK(!stream || stream->device == device, std::invalid_argument,
                 std::string(name) + " is a stream of device " + std::to_string(stream->device) +
                     ", the ring copies to device " + std::to_string(device));
}

}  // namespace

Ring::Ring(SharedRuntime runtime, const RingOptions& options)
    : runtime_(std::move(runtime)),
      process_(getpid()),
      device_(options.device),
      num_threads_(options.num_threads),
      events_(std::make_shared<EventPool>(runtime_, device_)),
      stream_(nullptr, device_) {
  check_at_least("capacity_bytes", options.capacity_bytes, kAlignment);
  VITCACHE_CHECK(options.num_threads >= 1, std::invalid_argument,
                 "num_threads is " + std::to_string(options.num_threads) + ", it must be at least 1");
  check_at_least("piece_bytes", options.piece_bytes, kAlignment);
  check_device("stream", options.stream, device_);
  const DeviceGuard guard(*runtime_, device_);
  region_ = std::make_unique<PinnedRegion>(runtime_, options.capacity_bytes, options.num_threads);
  capacity_ = region_->bytes();
  piece_bytes_ = round_up(std::min<std::uint64_t>(options.piece_bytes, capacity_), kAlignment);
  flags_ = std::make_unique<SlotFlags>(runtime_);
  workers_ = std::make_unique<FillWorkers>(num_threads_);
  if (!options.stream) own_stream_ = std::make_unique<OwnedStream>(runtime_, device_);
  stream_ = options.stream ? *options.stream : own_stream_->get();
}

Ring::~Ring() {
  try {
    close();  // does not throw: no thread copies, and the wait has no check that could end it
  } catch (...) {
    std::terminate();
  }
}

bool Ring::is_closed() {
  if (is_forked()) return false;
  const Lock lock(mutex_);
  return closed_;
}

bool Ring::is_forked() const { return getpid() != process_; }

void Ring::copy(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
                Cast cast, std::optional<Stream> after, std::optional<std::chrono::duration<double>> timeout,
                Interrupts interrupts) {
  const auto start = Clock::now();
  check_device("after", after, device_);
  VITCACHE_CHECK(ticket.device() == device_, std::invalid_argument,
                 "the ticket is of device " + std::to_string(ticket.device()) +
                     ", the ring copies to device " + std::to_string(device_));
  begin_copy();
  struct EndCopy {
    Ring& ring;
    ~EndCopy() { ring.end_copy(); }
  } const end_copy{*this};
  try {
    const DeviceGuard guard(*runtime_, device_);
    if (after) {
      // A wait for an event of a captured stream would add the ring's stream to the capture.
      VITCACHE_CHECK(!runtime_->is_capturing(*after), std::runtime_error,
                     "a copy through the ring cannot be captured in a CUDA graph: copy before the capture");
      const SharedEvent event = events_->take();
      runtime_->record(event.get(), *after);
      runtime_->wait_event(stream_, event.get());
    }
    Deadline deadline;
    if (timeout && *timeout < kLongestTimeout)
      deadline = start + std::chrono::duration_cast<Clock::duration>(*timeout);
    copy_pieces(ticket, destination, source, cast, deadline, interrupts);
  } catch (const CudaError&) {
    ticket.fail(std::current_exception());
  }
}

void Ring::copy_pieces(Ticket& ticket, std::byte* destination,
                       const std::shared_ptr<const StridedView>& source, Cast cast, const Deadline& deadline,
                       Interrupts& interrupts) {
  const std::int64_t element_bytes = cast_bytes(cast, source->element_bytes());
  const std::int64_t per_piece =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(piece_bytes_) / element_bytes);
  for (std::int64_t first = 0; first < source->num_elements(); first += per_piece) {
    const std::int64_t count = std::min(per_piece, source->num_elements() - first);
    const auto bytes = static_cast<std::size_t>(count * element_bytes);
    const Slot slot = reserve(bytes, deadline, interrupts);
    ticket.begin_piece();
    try {
      workers_->submit(
          {source, first, count, cast, slot_data(slot), flags_->of(slot.sequence), ticket.unread()});
    } catch (...) {
      ticket.drop_piece();
      flags_->of(slot.sequence).store();
      set_submitted(slot.sequence, {});
      throw;
    }
    if (!queue_piece(ticket, slot, destination + first * element_bytes, bytes)) return;
  }
}

bool Ring::queue_piece(Ticket& ticket, const Slot& slot, std::byte* destination, std::size_t bytes) {
  SharedEvent event;
  bool reads_slot = false;
  std::exception_ptr cause;
  try {
    event = events_->take();
    const SlotFlag flag = flags_->of(slot.sequence);
    runtime_->wait_value(stream_, flag.address, flag.value);
    reads_slot = true;
    runtime_->copy_async(destination, slot_data(slot), bytes, stream_);
  } catch (...) {
    cause = std::current_exception();
  }
  if (reads_slot) {
    try {
      runtime_->record(event.get(), stream_);
    } catch (...) {
      if (cause == nullptr) cause = std::current_exception();
      event = {};
      // Without an event the ring cannot know when the stream has read the slot, so the host waits for the
      // stream. If this wait fails, too, the device is lost and reads nothing any more.
      try {
        runtime_->synchronize_stream(stream_);
      } catch (const CudaError&) {
      }
    }
  } else {
    event = {};
  }
  ticket.end_piece(event);
  if (cause != nullptr) ticket.fail(cause);
  set_submitted(slot.sequence, std::move(event));
  return cause == nullptr;
}

Ring::Slot Ring::reserve(std::size_t bytes, const Deadline& deadline, Interrupts& interrupts) {
  const Lock lock(mutex_);
  const auto waiter = waiters_.insert(waiters_.end(), {bytes});
  try {
    Slot slot = wait_for_slot(waiter, deadline, interrupts);
    remove_waiter(waiter);
    return slot;
  } catch (...) {
    remove_waiter(waiter);
    throw;
  }
}

bool Ring::is_first(const Waiters::iterator& waiter) {
  return waiter ==
         std::find_if(waiters_.begin(), waiters_.end(), [](const Waiter& each) { return !each.is_away; });
}

Ring::Slot Ring::wait_for_slot(const Waiters::iterator& waiter, const Deadline& deadline,
                               Interrupts& interrupts) {
  const std::size_t bytes = waiter->bytes;
  while (true) {
    VITCACHE_CHECK(!closed_, std::runtime_error, "the ring was closed");
    const bool is_next = is_first(waiter);
    if (is_next) {
      Slot slot = next_slot(bytes);
      if (fits(slot)) {
        slots_.push_back(slot);
        ++next_sequence_;
        next_byte_ = slot.end;
        copied_bytes_ += bytes;
        return slot;
      }
      if (retire_oldest(false)) continue;
    }
    const auto now = Clock::now();
    VITCACHE_CHECK(
        !deadline || now < *deadline, RingTimeout,
        "timed out while waiting for a slot of " + std::to_string(bytes) + " bytes: " + describe_slots());
    if (interrupts.is_due()) {
      waiter->is_away = true;
      changed_.notify_all();
      run(interrupts);
      waiter->is_away = false;
    } else if (is_next) {
      changed_.wait_for(mutex_, kPoll);
    } else {
      const auto end = now + Interrupts::kInterval;
      changed_.wait_until(mutex_, deadline ? std::min(*deadline, end) : end);
    }
  }
}

void Ring::run(Interrupts& interrupts) {
  const Unlock unlock(mutex_);
  struct RenewInChild {
    Ring& ring;
    ~RenewInChild() {  // another thread of the parent may have held the mutex
      if (ring.is_forked()) new (&ring.mutex_) Mutex();
    }
  } const renew_in_child{*this};
  interrupts.run();
  check_process();
}

void Ring::remove_waiter(const Waiters::iterator& waiter) {
  if (is_forked()) return;  // a thread of the parent may have been changing the list
  waiters_.erase(waiter);
  changed_.notify_all();
}

Ring::Slot Ring::next_slot(std::size_t bytes) const {
  const std::uint64_t length = round_up(bytes, kAlignment);
  const bool wraps = next_byte_ % capacity_ + length > capacity_;
  const std::uint64_t begin = wraps ? round_up(next_byte_, capacity_) : next_byte_;
  // If the ring is empty, the skipped bytes need not be reserved.
  const std::uint64_t reserved_begin = slots_.empty() ? begin : next_byte_;
  return {next_sequence_, reserved_begin, begin, begin + length, false, {}};
}

bool Ring::fits(const Slot& slot) const {
  return slots_.empty() ||
         (slots_.size() < SlotFlags::kCount && slot.end - slots_.front().reserved_begin <= capacity_);
}

void Ring::set_submitted(std::uint64_t sequence, SharedEvent event) {
  const Lock lock(mutex_);
  Slot& slot = slots_[static_cast<std::size_t>(sequence - slots_.front().sequence)];
  slot.event = std::move(event);
  slot.submitted = true;
  changed_.notify_all();
}

bool Ring::retire_oldest(bool ignore_hold) {
  if (slots_.empty() || (holds_ > 0 && !ignore_hold)) return false;
  const Slot oldest = slots_.front();
  if (!oldest.submitted || !flags_->of(oldest.sequence).is_stored()) return false;
  {
    const Unlock unlock(mutex_);
    if (!is_complete(oldest.event)) return false;
  }
  // While the mutex was unlocked, another thread may have retired the slot or put the ring on hold.
  if (slots_.empty() || slots_.front().sequence != oldest.sequence) return true;
  if (holds_ > 0 && !ignore_hold) return false;
  slots_.pop_front();
  return true;
}

bool Ring::is_complete(const SharedEvent& event) const {
  return !event || runtime_->is_done_or_lost(event.get());
}

std::size_t Ring::used_bytes() const {
  return slots_.empty() ? 0 : static_cast<std::size_t>(next_byte_ - slots_.front().reserved_begin);
}

std::size_t Ring::num_unread() const {
  return static_cast<std::size_t>(std::count_if(slots_.begin(), slots_.end(), [this](const Slot& slot) {
    return !flags_->of(slot.sequence).is_stored();
  }));
}

void Ring::hold() {
  check_process();
  const Lock lock(mutex_);
  ++holds_;
}

void Ring::release() {
  if (is_forked()) return;
  const Lock lock(mutex_);
  --holds_;
  changed_.notify_all();
}

void Ring::check_process() const {
  VITCACHE_CHECK(!is_forked(), std::runtime_error,
                 "the ring belongs to process " + std::to_string(process_) + ", this is process " +
                     std::to_string(getpid()) + ": spawn processes and create a ring in each");
}

void Ring::begin_copy() {
  check_process();
  const Lock lock(mutex_);
  VITCACHE_CHECK(!closed_, std::runtime_error, "the ring was closed");
  copying_.push_back(std::this_thread::get_id());
  ++copies_;
}

void Ring::end_copy() {
  if (is_forked()) return;
  const Lock lock(mutex_);
  copying_.erase(std::find(copying_.begin(), copying_.end(), std::this_thread::get_id()));
  changed_.notify_all();
}

void Ring::close(Interrupts interrupts) {
  if (is_forked()) return;
  {
    const Lock lock(mutex_);
    VITCACHE_CHECK(std::find(copying_.begin(), copying_.end(), std::this_thread::get_id()) == copying_.end(),
                   std::runtime_error,
                   "close was called from inside copy_to of the same ring: it would wait for itself");
    closed_ = true;
    changed_.notify_all();
    while (!freed_ && (!copying_.empty() || reading_ > 0 || !slots_.empty())) {
      if (retire_oldest(true)) continue;
      if (interrupts.is_due())
        run(interrupts);
      else
        changed_.wait_for(mutex_, kPoll);
    }
    if (std::exchange(freed_, true)) return;
  }
  workers_.reset();
  own_stream_.reset();
  flags_.reset();
  region_.reset();
}

RingStats Ring::stats() {
  check_process();
  const Lock lock(mutex_);
  VITCACHE_CHECK(!closed_, std::runtime_error, "the ring was closed");
  ++reading_;  // `retire_oldest` unlocks the mutex: `close` must not destroy the flags before it returns
  while (retire_oldest(false)) continue;
  --reading_;
  return {static_cast<std::size_t>(capacity_),
          used_bytes(),
          slots_.size(),
          num_unread(),
          copies_,
          copied_bytes_,
          region_->seconds()};
}

std::string Ring::describe_slots() const {
  return std::to_string(slots_.size()) + " slots" +
         (slots_.size() == SlotFlags::kCount ? ", the maximum," : "") + " use " +
         std::to_string(used_bytes()) + " of " + std::to_string(capacity_) + " bytes; " +
         std::to_string(num_unread()) + " of the slots are still being filled, the rest wait for their copy" +
         (holds_ > 0 ? "; the ring is on hold" : "") +
         (waiters_.size() > 1 ? "; " + std::to_string(waiters_.size()) + " threads wait for a slot" : "");
}

void Ring::check_integrity() {
  check_process();
  const Lock lock(mutex_);
  const auto check = [](bool condition, const Slot& slot, const char* fault) {
    VITCACHE_CHECK(condition, std::runtime_error,
                   "the ring is inconsistent: slot " + std::to_string(slot.sequence) + " " + fault);
  };
  std::uint64_t sequence = next_sequence_ - slots_.size();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    check(slot.sequence == sequence++, slot, "is out of sequence");
    check(i == 0 || slot.reserved_begin == slots_[i - 1].end, slot,
          "does not begin at the end of the previous slot");
    check(slot.reserved_begin <= slot.begin && slot.begin < slot.end, slot, "is empty");
    check(slot.begin % capacity_ + (slot.end - slot.begin) <= capacity_, slot,
          "wraps around the end of the memory");
    check(slot.end - slots_.front().reserved_begin <= capacity_, slot, "overlaps the oldest slot");
    check(slot.end <= next_byte_, slot, "ends after the last reserved byte");
  }
}

}  // namespace vitcache
