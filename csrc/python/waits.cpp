#include "python/waits.h"

#include <Python.h>
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <unordered_set>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace vitcache {
namespace {

using Clock = std::chrono::steady_clock;

// A signal that arrives after the GIL is dropped and before the thread sleeps does not wake it. So the thread
// that runs signal handlers wakes in these intervals, and every other one once a day.
constexpr double kMicrosecondsBetweenSignals = 50e3;
constexpr double kMostMicroseconds = 86400e6;

// All resources and waits of the process. Never destroyed: threads may wait while the interpreter ends.
struct Registry {
  std::vector<Resource*> resources;
  std::vector<Waiter*> waiters;  // in the order in which they began
  std::vector<JobWait*> job_waits;
  std::vector<JobRun*> job_runs;
  Moment now = 0;
  ThreadNumber num_threads = 0;
};

Registry& registry() {
  static Registry& made = *new Registry();
  return made;
}

thread_local ThreadNumber number_of_thread = 0;

// Written by the child of a fork, which may not allocate or lock there: a fork may be called without the GIL.
bool has_forked = false;
ThreadNumber forking_thread = 0;

std::int64_t forks = 0;

void note_fork() {
  ++forks;
  forking_thread = !has_forked || forking_thread == number_of_thread ? number_of_thread : 0;
  has_forked = true;
}

template <typename T>
void erase(std::vector<T*>& list, const T* item) {
  list.erase(std::remove(list.begin(), list.end(), item), list.end());
}

template <typename T>
void keep_only(std::vector<T*>& list, ThreadNumber thread) {
  list.erase(std::remove_if(list.begin(), list.end(), [&](const T* each) { return each->thread != thread; }),
             list.end());
}

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

void wake(const Waiter& waiter) { PyThread_release_lock(static_cast<PyThread_type_lock>(waiter.lock)); }

// Follows waits from a resource or a thread up to a thread `target`.
class Search {
 public:
  explicit Search(ThreadNumber target) : target_(target) {}

  // Whether `resource` becomes free only after the target has done something.
  bool needs_target(const Resource& resource) {
    if (resource.holder() == 0) return false;
    if (resource.holder() != target_) return thread_needs_target(resource.holder(), resource.taken());
    last_ = &resource;
    return true;
  }

  // The same for a resource that a thread took, or a job that it began, at a moment.
  bool thread_needs_target(ThreadNumber thread, Moment since) {
    for (Waiter* waiter : registry().waiters) {
      if (waiter->thread != thread || waiter->since < since || !waiter->is_waiting()) continue;
      if (!seen_.insert(waiter).second || !needs_target(*waiter->resource)) continue;
      first_waiter_ = waiter;  // the outermost call assigns last
      return true;
    }
    for (const JobWait* wait : registry().job_waits) {
      if (wait->thread != thread || wait->since < since || !seen_.insert(wait).second) continue;
      for (const JobRun* run : registry().job_runs) {
        if (!wait->is_for(*run)) continue;
        if (run->thread == target_ || thread_needs_target(run->thread, run->since)) return true;
      }
    }
    return false;
  }

  // The waiter that the search met first; null if only waits for jobs lead to the target.
  Waiter* first_waiter() const { return first_waiter_; }
  // The use of the target at the end of the chain, in words.
  std::string goal() const {
    return last_ == nullptr ? "a job that this thread runs" : last_->holder_call() + " of this thread";
  }

 private:
  ThreadNumber target_;
  const Resource* last_ = nullptr;
  Waiter* first_waiter_ = nullptr;
  std::unordered_set<const void*> seen_;
};

void refuse_endless(const Resource& wanted, const std::string& call) {
  const std::string holder = wanted.holder_call() + ", which " + wanted.use();
  if (wanted.holder() == this_thread())
    throw std::runtime_error(call + " was called from inside " + holder + ": it would wait for itself");
  Search search(this_thread());
  if (search.needs_target(wanted))
    throw std::runtime_error(call + " would never return: it waits for " + holder + " and waits for " +
                             search.goal());
}

}  // namespace

ThreadNumber this_thread() {
  if (number_of_thread == 0) number_of_thread = ++registry().num_threads;
  return number_of_thread;
}

std::int64_t num_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, note_fork);
  static_cast<void>(registered);
  return forks;
}

void settle_forks() {
  num_forks();
  if (!has_forked) return;
  const ThreadNumber survivor = forking_thread;
  has_forked = false;
  keep_only(registry().waiters, survivor);  // the threads of the other waits are lost
  keep_only(registry().job_waits, survivor);
  keep_only(registry().job_runs, survivor);
  const std::vector<Resource*> resources = registry().resources;
  for (Resource* resource : resources)
    if (resource->holder() != 0 && resource->holder() != survivor) resource->abandon();
}

std::string last_turn_of(ThreadNumber thread, Moment since) {
  const Resource* last = nullptr;
  for (const Resource* resource : registry().resources)
    if (resource->is_turn() && resource->holder() == thread && resource->taken() > since &&
        (last == nullptr || resource->taken() > last->taken()))
      last = resource;
  return last == nullptr ? std::string() : last->holder_call();
}

Resource::Resource() { registry().resources.push_back(this); }

Resource::~Resource() { erase(registry().resources, this); }

void Resource::take(ThreadNumber thread, const std::string& call) {
  call_ = call;
  holder_ = thread;
  taken_ = ++registry().now;
}

Waiter* Resource::first_waiter() const {
  for (Waiter* waiter : registry().waiters)
    if (waiter->resource == this && waiter->is_waiting()) return waiter;
  return nullptr;
}

Waiter* Resource::first_ready_waiter() const {
  for (Waiter* waiter : registry().waiters)
    if (waiter->resource == this && waiter->is_waiting() && !waiter->runs_handler) return waiter;
  return nullptr;
}

std::int64_t Resource::num_waiting() const {
  return std::count_if(registry().waiters.begin(), registry().waiters.end(),
                       [&](const Waiter* each) { return each->resource == this && each->is_waiting(); });
}

void Resource::grant(Waiter& waiter) {
  waiter.is_granted = true;
  wake(waiter);
}

bool Resource::wait(const std::string& call, std::optional<double> timeout_s) {
  if (!timeout_s) refuse_endless(*this, call);
  if (is_finalizing())
    throw std::runtime_error(call + " would never return: it waits for " + holder_call() + ", which " +
                             use() + ", and the interpreter has ended that thread");
  PyThread_type_lock lock = PyThread_allocate_lock();
  if (lock == nullptr) throw std::bad_alloc();
  PyThread_acquire_lock(lock, WAIT_LOCK);
  // On the heap: if the interpreter ends, the thread may end in `PyEval_RestoreThread`, and its stack with
  // it.
  auto* const waiter = new Waiter{this_thread(), ++registry().now, this, call, lock, false, {}, false};
  registry().waiters.push_back(waiter);
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout_s.value_or(0));
  const bool runs_handlers = syscall(SYS_gettid) == getpid();  // the main thread, as in Python
  bool is_interrupted = false, is_late = false;
  while (waiter->is_waiting() && !is_interrupted && !is_late) {
    double left = runs_handlers ? kMicrosecondsBetweenSignals : kMostMicroseconds;
    if (timeout_s)
      left = std::min(left, std::chrono::duration<double, std::micro>(deadline - Clock::now()).count());
    PyThreadState* const state = PyEval_SaveThread();
    const PyLockStatus status =
        PyThread_acquire_lock_timed(lock, static_cast<PY_TIMEOUT_T>(std::max(left, 0.0)), 1);
    PyEval_RestoreThread(state);
    if (status != PY_LOCK_ACQUIRED && waiter->is_waiting()) {
      waiter->runs_handler = true;
      is_interrupted = PyErr_CheckSignals() < 0;
      settle_forks();  // the handler may have forked
      waiter->runs_handler = false;
      if (!is_interrupted) offer();
    }
    is_late = timeout_s && Clock::now() >= deadline;
  }
  const Waiter result = *waiter;
  erase(registry().waiters, waiter);
  delete waiter;
  PyThread_free_lock(lock);
  if (is_interrupted) throw py::error_already_set();
  if (!result.refusal.empty()) throw std::runtime_error(result.refusal);
  return result.is_granted;
}

JobWait::JobWait(std::optional<std::vector<unsigned long>> runners)
    : thread(this_thread()),
      since(++registry().now),
      ident_(PyThread_get_thread_ident()),
      runners_(std::move(runners)) {
  settle_forks();
  registry().job_waits.push_back(this);
  const std::vector<JobRun*> runs = registry().job_runs;
  for (const JobRun* run : runs) {
    if (!is_for(*run)) continue;
    while (true) {
      Search search(thread);
      if (!search.thread_needs_target(run->thread, run->since)) break;
      Waiter* const waiter = search.first_waiter();
      if (waiter == nullptr) {
        erase(registry().job_waits, this);
        throw std::runtime_error("jobs of this thread would wait for a job that this thread runs");
      }
      waiter->refusal = waiter->call + " would never return: it waits for " +
                        waiter->resource->holder_call() + ", which " + waiter->resource->use() +
                        " and waits for a job that this thread runs";
      wake(*waiter);
    }
  }
}

bool JobWait::is_for(const JobRun& run) const {
  if (run.thread == thread) return false;
  if (!runners_) return run.submitter == ident_;
  return std::find(runners_->begin(), runners_->end(), run.ident) != runners_->end();
}

JobWait::~JobWait() { erase(registry().job_waits, this); }

JobRun::JobRun(unsigned long submitter_ident)
    : thread(this_thread()),
      since(++registry().now),
      ident(PyThread_get_thread_ident()),
      submitter(submitter_ident) {
  settle_forks();
  registry().job_runs.push_back(this);
}

JobRun::~JobRun() { erase(registry().job_runs, this); }

}  // namespace vitcache
