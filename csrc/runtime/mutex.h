// A mutex whose use the compiler checks.
//
// Clang compares each access of a member that is VITCACHE_GUARDED_BY(mutex), and each call of a function that
// VITCACHE_REQUIRES(mutex) or VITCACHE_EXCLUDES(mutex), with the locks that are held there (-Wthread-safety;
// `make check` runs it). What takes the lock itself, or calls the CUDA runtime, excludes it. Other compilers
// see plain mutexes.
//
// Clang does not see that a lambda runs where its lock is held: wait in a loop, not with a predicate.
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

// Holds a mutex for a scope.
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

// Lets a mutex that is held go for a scope.
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

// A condition variable. A wait lets the mutex go and holds it again when it returns, which it may do early.
class Condition {
 public:
  void wait(Mutex& mutex) VITCACHE_REQUIRES(mutex) {
    Held held(mutex);
    condition_.wait(held.lock);
  }

  template <typename Duration>
  void wait_for(Mutex& mutex, Duration duration) VITCACHE_REQUIRES(mutex) {
    Held held(mutex);
    condition_.wait_for(held.lock, duration);
  }

  template <typename TimePoint>
  void wait_until(Mutex& mutex, TimePoint end) VITCACHE_REQUIRES(mutex) {
    Held held(mutex);
    condition_.wait_until(held.lock, end);
  }

  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  // The mutex as std::condition_variable takes it; whoever waits goes on holding it.
  struct Held {
    explicit Held(Mutex& mutex) : lock(mutex.mutex_, std::adopt_lock) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable condition_;
};

}  // namespace vitcache
