// The waits of threads for turns, claims and jobs, and the threads that hold or run these.
//
// A thread that would wait for itself, directly or through other threads, gets an error and does not wait.
//
// Thread rule: every function is called with the GIL, which guards all state of this file. Fork: at its first
// call, the child frees the resources of threads that it does not have.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>

namespace vitcache {

// Numbers of threads, which are never used twice; `threading.get_ident` may be. 0: no thread.
using ThreadNumber = std::uint64_t;
ThreadNumber this_thread();

// A moment of the process. A wait delays the resources that its thread took before the wait, and no later
// ones: a signal handler that takes a resource during the wait gives it back before the wait ends.
using Moment = std::uint64_t;

class Resource;

// A thread that waits for a resource.
struct Waiter {
  ThreadNumber thread;
  Moment since;
  Resource* resource;
  std::string call;
  void* lock;  // of PyThread: acquired until the thread is woken
  bool is_granted = false;
  std::string refusal;  // why the thread must not wait any longer

  bool is_waiting() const { return !is_granted && refusal.empty(); }
};

// Held by at most one thread, while other threads may wait for it.
class Resource {
 public:
  Resource();
  Resource(const Resource&) = delete;
  Resource& operator=(const Resource&) = delete;

  ThreadNumber holder() const { return holder_; }
  Moment taken() const { return taken_; }
  std::int64_t num_waiting() const;
  // The name of the holder's call. Without a holder, the last one's.
  virtual std::string holder_call() const { return call_; }
  // The holder's use of the resource, as in "holds the encoder".
  virtual std::string use() const = 0;
  virtual bool is_turn() const { return false; }
  // Ends the hold of a thread that does not exist in this process.
  virtual void abandon() = 0;

  // Returns whether the wait was granted, at once if the resource is free; false after `timeout_s` seconds.
  // Throws std::runtime_error if the wait would never end, unless it has a time limit. Throws
  // pybind11::error_already_set if a signal handler raises; then nothing was granted.
  bool wait(const std::string& call, std::optional<double> timeout_s);

 protected:
  virtual ~Resource();
  void take(ThreadNumber thread, const std::string& call);
  void leave() { holder_ = 0; }
  // The thread that has waited longest, or null.
  Waiter* first_waiter() const;
  static void grant(Waiter& waiter);
  // A granted wait ended with an exception of a signal handler.
  virtual void take_back(const Waiter& waiter) = 0;

 private:
  ThreadNumber holder_ = 0;
  Moment taken_ = 0;
  std::string call_;
};

// While it exists, its thread waits for the jobs that it submitted to other threads.
//
// If a thread that runs one of these jobs waits for this thread, that wait is refused.
class JobWait {
 public:
  // Throws std::runtime_error if the jobs wait for this thread and none of these waits can be refused.
  JobWait();
  ~JobWait();
  JobWait(const JobWait&) = delete;
  JobWait& operator=(const JobWait&) = delete;

  ThreadNumber thread;
  Moment since;
  unsigned long ident;  // threading.get_ident()
};

// While it exists, its thread runs a job of the thread `submitter`, a value of threading.get_ident().
class JobRun {
 public:
  explicit JobRun(unsigned long submitter);
  ~JobRun();
  JobRun(const JobRun&) = delete;
  JobRun& operator=(const JobRun&) = delete;

  ThreadNumber thread;
  Moment since;
  unsigned long submitter;
};

// Frees the resources of threads that a fork did not copy. Call it before any state of a resource is read.
void settle_forks();

// The call of the turn that a thread took last, after `since`; empty without such a turn.
std::string last_turn_of(ThreadNumber thread, Moment since);

}  // namespace vitcache
