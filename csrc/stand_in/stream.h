// The streams of the stand-in, which are threads, and its events.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "runtime/mutex.h"
#include "stand_in/hooks.h"

namespace vitcache::stand_in {

// A number that no earlier stream or event of this process has. An address may be used again.
inline std::uint64_t next_serial() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

// One recording of an event. A waiting thread keeps the Completion that it waits for, so a later recording of
// the event does not change the wait.
class Completion {
 public:
  void complete() {
    const Lock lock(mutex_);
    is_complete_ = true;
    changed_.notify_all();
  }
  void wait() {
    const Lock lock(mutex_);
    while (!is_complete_) changed_.wait(mutex_);
  }
  bool query() {
    const Lock lock(mutex_);
    return is_complete_;
  }

 private:
  Mutex mutex_;
  Condition changed_;
  bool is_complete_ VITCACHE_GUARDED_BY(mutex_) = false;
};

class Event {
 public:
  explicit Event(int device) : device_(device) {}

  int device() const { return device_; }
  std::uint64_t serial() const { return serial_; }
  std::shared_ptr<Completion> get() {
    const Lock lock(mutex_);
    return completion_;
  }
  void set(std::shared_ptr<Completion> recorded) {
    const Lock lock(mutex_);
    completion_ = std::move(recorded);
  }

 private:
  const int device_;
  const std::uint64_t serial_ = next_serial();
  Mutex mutex_;
  std::shared_ptr<Completion> completion_ VITCACHE_GUARDED_BY(mutex_);  // of the last recording
};

class Stream {
 public:
  // How a stream synchronizes with the legacy stream of its device: stream_table.h has the rules.
  enum class Kind { kLegacy, kBlocking, kNonBlocking };

  Stream(int device, Kind kind) : device_(device), kind_(kind) {
    std::thread([this] { run(); }).detach();
  }

  int device() const { return device_; }
  Kind kind() const { return kind_; }
  std::uint64_t serial() const { return serial_; }

  void push(std::function<void()> work) {
    const Lock lock(mutex_);
    queue_.push_back(std::move(work));
    changed_.notify_one();
  }

  // Destroys the stream after its queued work has run.
  void finish() {
    const Lock lock(mutex_);
    finishing_ = true;
    changed_.notify_one();
  }

 private:
  ~Stream() = default;

  void run() {
    while (true) {
      std::function<void()> work;
      {
        const Lock lock(mutex_);
        while (!finishing_ && queue_.empty()) changed_.wait(mutex_);
        if (queue_.empty()) break;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      wait_while_paused();
      work();
    }
    delete this;
  }

  const int device_;
  const Kind kind_;
  const std::uint64_t serial_ = next_serial();
  Mutex mutex_;
  Condition changed_;
  std::deque<std::function<void()>> queue_ VITCACHE_GUARDED_BY(mutex_);
  bool finishing_ VITCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace vitcache::stand_in
