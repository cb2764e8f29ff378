#include "ring/fill_workers.h"

#include <pthread.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace vitcache {

FillWorkers::FillWorkers(int num_threads) {
  threads_.reserve(static_cast<std::size_t>(num_threads));
  try {
    for (int thread = 0; thread < num_threads; ++thread) {
      threads_.emplace_back([this] { run(); });
      pthread_setname_np(threads_.back().native_handle(), "vitcache-fill");
    }
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error("num_threads is " + std::to_string(num_threads) + ", but only " +
                             std::to_string(threads_.size()) +
                             " threads could be started: " + error.code().message());
  } catch (...) {  // no memory: a thread that is not joined would end the process
    stop();
    throw;
  }
}

FillWorkers::~FillWorkers() { stop(); }

void FillWorkers::stop() {
  {
    const Lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FillWorkers::submit(FillJob job) {
  const std::int64_t chunk_elements = std::max<std::int64_t>(1, kChunkBytes / job.source->element_bytes());
  const bool is_one_chunk = job.count <= chunk_elements;
  auto shared = std::make_shared<SharedJob>(std::move(job));
  {
    const Lock lock(mutex_);
    queue_.push_back({std::move(shared), chunk_elements, 0});
  }
  if (is_one_chunk)
    changed_.notify_one();
  else
    changed_.notify_all();
}

std::optional<FillWorkers::Chunk> FillWorkers::take() {
  const Lock lock(mutex_);
  while (!stopping_ && queue_.empty()) changed_.wait(mutex_);
  if (queue_.empty()) return std::nullopt;
  Queued& oldest = queue_.front();
  const std::int64_t remaining = oldest.shared->job.count - oldest.next;
  Chunk chunk{oldest.shared, oldest.next, std::min(oldest.chunk_elements, remaining)};
  oldest.next += chunk.count;
  if (chunk.count == remaining) queue_.pop_front();
  return chunk;
}

void FillWorkers::run() {
  while (const std::optional<Chunk> chunk = take()) {
    const FillJob& job = chunk->shared->job;
    const std::int64_t element_bytes = cast_bytes(job.cast, job.source->element_bytes());
    fill(job.destination + chunk->begin * element_bytes, *job.source, job.first + chunk->begin, chunk->count,
         job.cast);
    if (chunk->shared->unwritten.fetch_sub(chunk->count, std::memory_order_acq_rel) == chunk->count) {
      job.unread->fetch_sub(1, std::memory_order_release);
      job.full.store();
    }
  }
}

}  // namespace vitcache
