#include "ring/ring.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "runtime/device_guard.h"
#include "runtime/error.h"

namespace vitcache {
namespace {

// Nothing tells the host that a stream has gone on: the first thread in line looks this often.
constexpr std::chrono::microseconds kPoll{50};

// Longer is for ever: the clock counts no more than some 292 years.
constexpr std::chrono::duration<double> kLongestTimeout{1e9};

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

void check_at_least(const char* name, std::uint64_t value, std::uint64_t least) {
  VITCACHE_CHECK(
      value >= least, std::invalid_argument,
      std::string(name) + " is " + std::to_string(value) + ", it must be at least " + std::to_string(least));
}

// The device of a stream that the caller names must be the ring's.
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
  if (!options.stream) own_stream_ = std::make_unique<OwnedStream>(runtime_, device_);
  stream_ = options.stream ? *options.stream : own_stream_->get();
  workers_ = std::make_unique<FillWorkers>(num_threads_);
}

Ring::~Ring() { close(); }

bool Ring::is_forked() const { return getpid() != process_; }

void Ring::copy(Ticket& ticket, std::byte* destination, const std::shared_ptr<const StridedView>& source,
                Cast cast, std::optional<Stream> after,
                std::optional<std::chrono::duration<double>> timeout) {
  const auto start = Clock::now();
  check_device("after", after, device_);
  VITCACHE_CHECK(ticket.device() == device_, std::invalid_argument,
                 "the ticket is of device " + std::to_string(ticket.device()) +
                     ", the ring copies to device " + std::to_string(device_));
  enter();
  struct Leave {
    Ring& ring;
    ~Leave() { ring.leave(); }
  } const leave{*this};
  try {
    const DeviceGuard guard(*runtime_, device_);
    if (after) {
      // Behind its event the ring's stream would be captured, too.
      VITCACHE_CHECK(!runtime_->is_capturing(*after), std::runtime_error,
                     "a copy through the ring cannot be captured in a CUDA graph: copy before the capture");
      const SharedEvent before = events_->take();
      runtime_->record(before.get(), *after);
      runtime_->wait_event(stream_, before.get());
    }
    Deadline deadline;
    if (timeout && *timeout < kLongestTimeout)
      deadline = start + std::chrono::duration_cast<Clock::duration>(*timeout);
    copy_pieces(ticket, destination, source, cast, deadline);
  } catch (const CudaError&) {
    ticket.fail(std::current_exception());
  }
}

void Ring::copy_pieces(Ticket& ticket, std::byte* destination,
                       const std::shared_ptr<const StridedView>& source, Cast cast,
                       const Deadline& deadline) {
  const std::int64_t element_bytes = cast_bytes(cast, source->element_bytes());
  const std::int64_t per_piece =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(piece_bytes_) / element_bytes);
  for (std::int64_t first = 0; first < source->num_elements(); first += per_piece) {
    const std::int64_t count = std::min(per_piece, source->num_elements() - first);
    const auto bytes = static_cast<std::size_t>(count * element_bytes);
    const Slot slot = reserve(bytes, deadline);
    ticket.begin_piece();
    try {
      workers_->submit({source, first, count, cast, place(slot), flags_->of(slot.sequence), ticket.unread()});
    } catch (...) {
      ticket.drop_piece();
      flags_->of(slot.sequence).store();
      submitted(slot.sequence, {});
      throw;
    }
    if (!send_piece(ticket, slot, destination + first * element_bytes, bytes)) return;
  }
}

bool Ring::send_piece(Ticket& ticket, const Slot& slot, std::byte* destination, std::size_t bytes) {
  SharedEvent event;
  bool reads_slot = false;
  std::exception_ptr cause;
  try {
    event = events_->take();
    const SlotFlag flag = flags_->of(slot.sequence);
    runtime_->wait_value(stream_, flag.address, flag.value);
    reads_slot = true;
    runtime_->copy_async(destination, place(slot), bytes, stream_);
  } catch (...) {
    cause = std::current_exception();
  }
  if (reads_slot) {
    try {
      runtime_->record(event.get(), stream_);
    } catch (...) {
      if (cause == nullptr) cause = std::current_exception();
      event = {};
      // Without an event nobody would know when the slot has been read. A stream that is lost reads nothing.
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
  submitted(slot.sequence, std::move(event));
  return cause == nullptr;
}

Ring::Slot Ring::reserve(std::size_t bytes, const Deadline& deadline) {
  const Lock lock(mutex_);
  const auto me = line_.insert(line_.end(), bytes);
  try {
    Slot slot = wait_for_room(me, deadline);
    leave_line(me);
    return slot;
  } catch (...) {
    leave_line(me);
    throw;
  }
}

Ring::Slot Ring::wait_for_room(const Line::iterator& me, const Deadline& deadline) {
  const std::size_t bytes = *me;
  while (true) {
    VITCACHE_CHECK(!closed_, std::runtime_error, "the ring was closed");
    const bool is_first = me == line_.begin();
    if (is_first) {
      Slot slot = next_slot(bytes);
      if (fits(slot)) {
        slots_.push_back(slot);
        ++next_sequence_;
        next_byte_ = slot.end;
        copied_bytes_ += bytes;
        return slot;
      }
      if (retire_one(false)) continue;
    }
    const auto now = Clock::now();
    VITCACHE_CHECK(!deadline || now < *deadline, RingTimeout,
                   "no room for " + std::to_string(bytes) + " bytes in time: " + describe_slots());
    if (is_first)
      changed_.wait_for(mutex_, kPoll);
    else if (deadline)
      changed_.wait_until(mutex_, *deadline);
    else
      changed_.wait(mutex_);
  }
}

void Ring::leave_line(const Line::iterator& me) {
  line_.erase(me);
  changed_.notify_all();
}

Ring::Slot Ring::next_slot(std::size_t bytes) const {
  const std::uint64_t length = round_up(bytes, kAlignment);
  const bool wraps = next_byte_ % capacity_ + length > capacity_;
  const std::uint64_t begin = wraps ? round_up(next_byte_, capacity_) : next_byte_;
  // Where no slot is left, nothing keeps the bytes that are skipped.
  const std::uint64_t claim = slots_.empty() ? begin : next_byte_;
  return {next_sequence_, claim, begin, begin + length, false, {}};
}

bool Ring::fits(const Slot& slot) const {
  return slots_.empty() ||
         (slots_.size() < SlotFlags::kCount && slot.end - slots_.front().claim <= capacity_);
}

void Ring::submitted(std::uint64_t sequence, SharedEvent event) {
  const Lock lock(mutex_);
  Slot& slot = slots_[static_cast<std::size_t>(sequence - slots_.front().sequence)];
  slot.event = std::move(event);
  slot.submitted = true;
  changed_.notify_all();
}

bool Ring::retire_one(bool despite_hold) {
  if (slots_.empty() || (holds_ > 0 && !despite_hold)) return false;
  const Slot front = slots_.front();
  if (!front.submitted || !flags_->of(front.sequence).is_stored()) return false;
  {
    const Unlock unlock(mutex_);
    if (!has_passed(front.event)) return false;
  }
  // Another thread may have been faster, or a hold.
  if (slots_.empty() || slots_.front().sequence != front.sequence) return true;
  if (holds_ > 0 && !despite_hold) return false;
  slots_.pop_front();
  return true;
}

bool Ring::has_passed(const SharedEvent& event) const {
  return !event || runtime_->is_done_or_lost(event.get());
}

std::size_t Ring::used_bytes() const {
  return slots_.empty() ? 0 : static_cast<std::size_t>(next_byte_ - slots_.front().claim);
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
                     std::to_string(getpid()) + ": spawn processes and make a ring in each");
}

void Ring::enter() {
  check_process();
  const Lock lock(mutex_);
  VITCACHE_CHECK(!closed_, std::runtime_error, "the ring was closed");
  ++copying_;
  ++copies_;
}

void Ring::leave() {
  const Lock lock(mutex_);
  --copying_;
  changed_.notify_all();
}

void Ring::close() {
  if (is_forked()) return;
  {
    const Lock lock(mutex_);
    if (closed_) return;
    closed_ = true;
    changed_.notify_all();
    while (copying_ > 0 || !slots_.empty())
      if (!retire_one(true)) changed_.wait_for(mutex_, kPoll);
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
  ++copying_;  // keeps `close` from taking the flags away
  while (retire_one(false)) continue;
  --copying_;
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
         (slots_.size() == SlotFlags::kCount ? ", as many as there can be," : "") + " hold " +
         std::to_string(used_bytes()) + " of " + std::to_string(capacity_) + " bytes, " +
         std::to_string(num_unread()) + " of them still being filled, the others until their copy is over" +
         (holds_ > 0 ? "; the ring is held" : "") +
         (line_.size() > 1 ? "; " + std::to_string(line_.size()) + " threads wait for room" : "");
}

void Ring::check_integrity() {
  check_process();
  const Lock lock(mutex_);
  const auto check = [](bool right, const Slot& slot, const char* what) {
    VITCACHE_CHECK(right, std::runtime_error,
                   "the ring is inconsistent: slot " + std::to_string(slot.sequence) + ": " + what);
  };
  std::uint64_t sequence = next_sequence_ - slots_.size();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    check(slot.sequence == sequence++, slot, "out of sequence");
    check(i == 0 || slot.claim == slots_[i - 1].end, slot, "does not begin where the one before it ends");
    check(slot.claim <= slot.begin && slot.begin < slot.end, slot, "has no bytes");
    check(slot.begin % capacity_ + (slot.end - slot.begin) <= capacity_, slot, "wraps");
    check(slot.end - slots_.front().claim <= capacity_, slot, "lies over the oldest one");
    check(slot.end <= next_byte_, slot, "ends behind the ring's end");
  }
}

}  // namespace vitcache
