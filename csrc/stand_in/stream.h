// Streams of the stand-in, which are threads, and the events between them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "stand_in/hooks.h"

namespace vitcache::stand_in {

// One recording of an event. Whoever waits for it holds it, so a later recording changes nothing for them.
struct Mark {
  std::mutex mutex;
  std::condition_variable changed;
  bool passed = false;

  void pass() {
    const std::lock_guard<std::mutex> lock(mutex);
    passed = true;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [this] { return passed; });
  }
  bool query() {
    const std::lock_guard<std::mutex> lock(mutex);
    return passed;
  }
};

struct Event {
  explicit Event(int made_on) : device(made_on) {}

  const int device;
  std::mutex mutex;
  std::shared_ptr<Mark> mark;  // of the last recording

  std::shared_ptr<Mark> get() {
    const std::lock_guard<std::mutex> lock(mutex);
    return mark;
  }
  void set(std::shared_ptr<Mark> recorded) {
    const std::lock_guard<std::mutex> lock(mutex);
    mark = std::move(recorded);
  }
};

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    std::thread([this] { run(); }).detach();
  }

  int device() const { return device_; }

  void push(std::function<void()> work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(work));
    changed_.notify_one();
  }

  // Destroys the stream once it has done what it was given.
  void finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    finishing_ = true;
    changed_.notify_one();
  }

 private:
  ~Stream() = default;

  void run() {
    while (true) {
      std::function<void()> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return finishing_ || !queue_.empty(); });
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
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool finishing_ = false;
};

}  // namespace vitcache::stand_in
