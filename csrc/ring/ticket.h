// What is known of one copy: that its source was read, that it is over, or why it failed.
//
// A ticket knows the device of its copy, which need not be the calling thread's current one.
//
// Thread rule: any thread may call anything but `begin_piece`, `end_piece` and `fail`, which the copying
// thread calls before it hands the ticket out. A ticket may outlive its ring. A process that was forked off
// reads no source; what needs the device throws there.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>

#include "ring/event_pool.h"
#include "runtime/cuda_runtime.h"

namespace vitcache {

class Ticket {
 public:
  Ticket(SharedRuntime runtime, int device) : runtime_(std::move(runtime)), device_(device) {}

  int device() const { return device_; }

  // Whether nobody will read the source again.
  bool source_read() const { return unread_->load(std::memory_order_acquire) == 0 || getpid() != process_; }

  // The host waits until nobody will; for the worker threads, not for the device.
  void wait_source_read() const;

  // Whether nobody will write the destination again either, the copy having failed or not.
  bool is_over() const;

  // The rest throws the cause if the copy failed.

  // The work that `stream`, of any device, is given from now on comes after the copy; the host does not wait.
  void wait(Stream stream) const;

  // The host waits until the copy is over.
  void synchronize() const;

  // Whether it is.
  bool done() const;

  void begin_piece() { unread_->fetch_add(1, std::memory_order_relaxed); }
  void drop_piece() { unread_->fetch_sub(1, std::memory_order_release); }
  void end_piece(SharedEvent event) {
    if (event) last_ = std::move(event);
  }
  void fail(std::exception_ptr cause) { cause_ = std::move(cause); }
  const std::shared_ptr<std::atomic<std::int64_t>>& unread() const { return unread_; }

 private:
  void raise() const;

  SharedRuntime runtime_;
  int device_;
  pid_t process_ = getpid();
  std::shared_ptr<std::atomic<std::int64_t>> unread_ = std::make_shared<std::atomic<std::int64_t>>(0);
  SharedEvent last_;  // behind the last piece that was queued; none where none was
  std::exception_ptr cause_;
};

}  // namespace vitcache
