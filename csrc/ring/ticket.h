// The state of one copy through a ring: whether its source was read, whether the copy is complete, and why it
// failed.
//
// A ticket stores the device of its copy, so its methods work with any current device.
//
// Thread rule: `begin_piece`, `drop_piece`, `end_piece` and `fail` are for the copying thread, before other
// threads get the ticket. Any thread may call the other methods. A ticket may outlive its ring. In a forked
// child `source_read` is true, and methods that need the device throw std::runtime_error.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>

#include "ring/interrupts.h"
#include "runtime/cuda_runtime.h"
#include "runtime/event_pool.h"

namespace vitcache {

class Ticket {
 public:
  Ticket(SharedRuntime runtime, int device) : runtime_(std::move(runtime)), device_(device) {}

  int device() const { return device_; }

  // Whether all threads have finished reading the source.
  bool source_read() const { return unread_->load(std::memory_order_acquire) == 0 || getpid() != process_; }

  // The host waits until `source_read` is true. It waits for the worker threads, not for the device.
  void wait_source_read(Interrupts interrupts = {}) const;

  // Whether the source or the destination may still be accessed. False once all queued pieces are complete or
  // the device is lost, even if the copy failed. Unlike `done`, this method never throws.
  bool is_in_flight() const;

  // The methods below throw the cause if the copy failed.

  // Work that is queued on `stream` from now on runs after the copy. `stream` may belong to any device. The
  // host does not wait. Throws std::runtime_error if `stream` is being captured in a graph, and leaves the
  // capture valid.
  void wait(Stream stream) const;

  // The host waits until the copy is complete. An interrupted wait changes nothing.
  void synchronize(Interrupts interrupts = {}) const;

  // Whether the copy is complete.
  bool done() const;

  void begin_piece() { unread_->fetch_add(1, std::memory_order_relaxed); }
  void drop_piece() { unread_->fetch_sub(1, std::memory_order_release); }
  void end_piece(SharedEvent event) {
    if (event) last_ = std::move(event);
  }
  void fail(std::exception_ptr cause) { cause_ = std::move(cause); }
  const std::shared_ptr<std::atomic<std::int64_t>>& unread() const { return unread_; }

 private:
  // Throws the cause if the copy failed, and std::runtime_error in a forked child.
  void check() const;

  SharedRuntime runtime_;
  int device_;
  pid_t process_ = getpid();
  std::shared_ptr<std::atomic<std::int64_t>> unread_ = std::make_shared<std::atomic<std::int64_t>>(0);
  SharedEvent last_;  // recorded after the last piece that was queued; empty if no piece was queued
  std::exception_ptr cause_;
};

}  // namespace vitcache
