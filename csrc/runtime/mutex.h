// A mutex whose use Clang checks at compile time (-Wthread-safety; `make check` runs it).
//
// A member that is VITCACHE_GUARDED_BY(mutex) may be accessed only while the calling thread holds the mutex.
// A function that VITCACHE_REQUIRES(mutex) may be called only while the thread holds it, and a function that
// VITCACHE_EXCLUDES(mutex) only while the thread does not. A function that locks the mutex itself, or calls
// the CUDA runtime, excludes it. For other compilers these are plain mutexes.
//
// Clang does not know which locks are held inside of a lambda: wait in a loop, not with a predicate.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define VITCACHE_THREAD_SAFETY(attribute) __attribute__((attribute))
#else
#define VITCACHE_THREAD_SAFETY(attribute)
#endif

#define VITCACHE_GUARDED_BY(mutex) VITCACHE_THREAD_SAFETY(guarded_by(mutex))
#define VITCACHE_REQUIRES(mutex) VITCACHE_THREAD_SAFETY(requires_capability(mutex))
#define VITCACHE_EXCLUDES(mutex) VITCACHE_THREAD_SAFETY(locks_excluded(mutex))

namespace vitcache {

class VITCACHE_THREAD_SAFETY(capability("mutex")) Mutex {
 public:
  void lock() VITCACHE_THREAD_SAFETY(acquire_capability()) { mutex_.lock(); }
  void unlock() VITCACHE_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }

 private:
  friend class Condition;
  std::mutex mutex_;
};

// Locks a mutex for a scope.
class VITCACHE_THREAD_SAFETY(scoped_lockable) Lock {
 public:
  explicit Lock(Mutex& mutex) VITCACHE_THREAD_SAFETY(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() VITCACHE_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }

 private:
  Mutex& mutex_;
};

// Unlocks a locked mutex for a scope.
class VITCACHE_THREAD_SAFETY(scoped_lockable) Unlock {
 public:
  explicit Unlock(Mutex& mutex) VITCACHE_THREAD_SAFETY(release_capability(mutex)) : mutex_(mutex) {
    mutex_.unlock();
  }
  Unlock(const Unlock&) = delete;
  Unlock& operator=(const Unlock&) = delete;
  ~Unlock() VITCACHE_THREAD_SAFETY(release_capability()) { mutex_.lock(); }

 private:
  Mutex& mutex_;
};

// A condition variable. A wait unlocks the mutex and locks it again before it returns. It may return without
// a notification.
class Condition {
 public:
  void wait(Mutex& mutex) VITCACHE_REQUIRES(mutex) {
    AdoptedLock adopted(mutex);
    condition_.wait(adopted.lock);
  }

  template <typename Duration>
  void wait_for(Mutex& mutex, Duration duration) VITCACHE_REQUIRES(mutex) {
    AdoptedLock adopted(mutex);
    condition_.wait_for(adopted.lock, duration);
  }

  template <typename TimePoint>
  void wait_until(Mutex& mutex, TimePoint end) VITCACHE_REQUIRES(mutex) {
    AdoptedLock adopted(mutex);
    condition_.wait_until(adopted.lock, end);
  }

  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  // Passes the locked mutex to std::condition_variable. The destructor leaves the mutex locked for the
  // caller.
  struct AdoptedLock {
    explicit AdoptedLock(Mutex& mutex) : lock(mutex.mutex_, std::adopt_lock) {}
    AdoptedLock(const AdoptedLock&) = delete;
    AdoptedLock& operator=(const AdoptedLock&) = delete;
    ~AdoptedLock() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable condition_;
};

}  // namespace vitcache
