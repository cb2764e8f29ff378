// The waits of threads for turns, claims and jobs, and the threads that hold or run these.
//
// A thread that would wait for itself, directly or through other threads, gets an error and does not wait.
//
// Thread rule: every function is called with the GIL, which guards all state of this file. Fork: at its first
// call, the child frees the resources of threads that it does not have.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

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
  std::string refusal;        // why the thread must not wait any longer
  bool runs_handler = false;  // of a signal, during the wait

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
  // Throws std::runtime_error if the wait would never end, unless it has a time limit, and if the interpreter
  // ends, which ends all other threads. Throws pybind11::error_already_set if a signal handler raises; then
  // nothing was granted.
  bool wait(const std::string& call, std::optional<double> timeout_s);

 protected:
  virtual ~Resource();
  void take(ThreadNumber thread, const std::string& call);
  void leave() { holder_ = 0; }
  // The thread that has waited longest, or null.
  Waiter* first_waiter() const;
  // The same of the threads that run no signal handler during the wait. Such a handler may itself wait, for
  // this resource or for a thread that needs it, so its thread gets no resource before the handler ends.
  Waiter* first_ready_waiter() const;
  static void grant(Waiter& waiter);
  // Grants a wait if the resource is free: a waiter was not ready when the resource became free.
  virtual void offer() = 0;

 private:
  ThreadNumber holder_ = 0;
  Moment taken_ = 0;
  std::string call_;
};

// While it exists, its thread runs a job of the thread `submitter`, a value of threading.get_ident(). 0: no
// thread waits for the job as its submitter.
class JobRun {
 public:
  explicit JobRun(unsigned long submitter);
  ~JobRun();
  JobRun(const JobRun&) = delete;
  JobRun& operator=(const JobRun&) = delete;

  ThreadNumber thread;
  Moment since;
  unsigned long ident;  // threading.get_ident()
  unsigned long submitter;
};

// While it exists, its thread waits for jobs: for all jobs of the threads `runners`, values of
// threading.get_ident(), or without `runners` for those that it submitted to other threads.
//
// If a thread that runs one of these jobs waits for this thread, that wait is refused.
class JobWait {
 public:
  // Throws std::runtime_error if the jobs wait for this thread and none of these waits can be refused.
  explicit JobWait(std::optional<std::vector<unsigned long>> runners);
  ~JobWait();
  JobWait(const JobWait&) = delete;
  JobWait& operator=(const JobWait&) = delete;

  bool is_for(const JobRun& run) const;

  ThreadNumber thread;
  Moment since;

 private:
  unsigned long ident_;
  std::optional<std::vector<unsigned long>> runners_;
};

// The number of forks between the first process and this one.
std::int64_t num_forks();

// Frees the resources of threads that a fork did not copy. Call it before any state of a resource is read.
void settle_forks();

// The call of the turn that a thread took last, after `since`; empty without such a turn.
std::string last_turn_of(ThreadNumber thread, Moment since);

}  // namespace vitcache
