#include "ring/fill_workers.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace vitcache {
FillWorkers::FillWorkers(int num_threads) {
  threads_.reserve(static_cast<std::size_t>(num_threads));
  try {
    for (int thread = 0; thread < num_threads; ++thread) {
      threads_.emplace_back([this] { run(); });
      pthread_setname_np(threads_.back().native_handle(), "vitcache-fill");
    }
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    throw;
  }
}

FillWorkers::~FillWorkers() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FillWorkers::submit(FillJob job) {
  auto queued = std::make_shared<Queued>();
  queued->chunk_elements = std::max<std::int64_t>(1, kChunkBytes / job.source->element_bytes());
  queued->unwritten = job.count;
  queued->job = std::move(job);
  const bool one_chunk = queued->job.count <= queued->chunk_elements;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(queued));
  }
  if (one_chunk)
    changed_.notify_one();
  else
    changed_.notify_all();
}

void FillWorkers::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const std::shared_ptr<Queued> queued = jobs_.front();
    const FillJob& job = queued->job;
    const std::int64_t begin = queued->next;
    const std::int64_t count = std::min(queued->chunk_elements, job.count - begin);
    queued->next += count;
    if (queued->next == job.count) jobs_.pop_front();
    lock.unlock();
    const std::int64_t element_bytes = cast_bytes(job.cast, job.source->element_bytes());
    fill(job.destination + begin * element_bytes, *job.source, job.first + begin, count, job.cast);
    if (queued->unwritten.fetch_sub(count, std::memory_order_acq_rel) == count) {
      job.unread->fetch_sub(1, std::memory_order_release);
      job.full.store();
    }
    lock.lock();
  }
}

}  // namespace vitcache
