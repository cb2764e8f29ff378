#include "cache/s3fifo.h"

#include <algorithm>

namespace vitcache {

S3Fifo::S3Fifo(std::int64_t capacity_pages)
    : small_capacity_(std::max<std::int64_t>(1, capacity_pages / kSmallPart)) {}

void S3Fifo::insert(PolicyNode& node, std::int64_t pages, double /*cost*/) {
  node.pages = pages;
  const auto ghost = ghosts_.find(node.key);
  if (ghost == ghosts_.end()) {
    node.queue = kSmall;
    small_pages_ += pages;
  } else {
    node.queue = lap_ + 1;
    ghost_queue_.remove(ghost->second);
    ghosts_.erase(ghost);
  }
  queue_of(node).append(node);
  ++num_nodes_;
}

void S3Fifo::touch(PolicyNode& node) {
  queue_of(node).remove(node);
  if (node.queue == kSmall) small_pages_ -= node.pages;
  // A leased node may be in an earlier lap than `lap_`, and the small queue counts as one.
  const std::int64_t lap = std::max(lap_, node.queue);
  node.queue = std::min(lap + 1, lap_ + kMostLaps);
  queue_of(node).append(node);
}

void S3Fifo::remove(PolicyNode& node) {
  queue_of(node).remove(node);
  if (node.queue == kSmall) small_pages_ -= node.pages;
  --num_nodes_;
  trim_ghosts();
}

void S3Fifo::evict(PolicyNode& node) {
  if (node.queue == kSmall) {
    // Throws, if at all, before anything is changed.
    PolicyNode& ghost = ghosts_.try_emplace(node.key, node.key).first->second;
    ghost_queue_.append(ghost);
  } else {
    begin_lap(node.queue);
  }
  remove(node);
}

bool S3Fifo::is_worth_copy(const PolicyNode& node) const { return node.queue != kSmall; }

PolicyNode* S3Fifo::first_victim() const {
  for (const PolicyQueue* queue : eviction_order())
    if (!queue->is_empty()) return queue->first();
  return nullptr;
}

PolicyNode* S3Fifo::next_victim(const PolicyNode& node) const {
  if (node.next != nullptr) return node.next;
  const Queues queues = eviction_order();
  const auto* queue = std::find_if(queues.begin(), queues.end(),
                                   [&node](const PolicyQueue* each) { return each->last() == &node; });
  for (++queue; queue != queues.end(); ++queue)
    if (!(*queue)->is_empty()) return (*queue)->first();
  return nullptr;
}

PolicyQueue& S3Fifo::queue_of(const PolicyNode& node) {
  if (node.queue == kSmall) return small_;
  return node.queue <= lap_ ? current_ : lap_queue(node.queue);
}

S3Fifo::Queues S3Fifo::eviction_order() const {
  Queues queues{&small_, &current_};
  for (std::int64_t step = 1; step <= kMostLaps; ++step)
    queues[static_cast<std::size_t>(1 + step)] = &laps_[static_cast<std::size_t>((lap_ + step) % kMostLaps)];
  if (small_pages_ < small_capacity_) std::rotate(queues.begin(), queues.begin() + 1, queues.end());
  return queues;
}

// Makes `lap` the current lap, if it is later than the current lap.
void S3Fifo::begin_lap(std::int64_t lap) {
  while (lap_ < lap) current_.append_all(lap_queue(++lap_));
}

// The limit falls by one with each node that leaves, and an eviction also adds a ghost.
void S3Fifo::trim_ghosts() {
  while (ghosts_.size() > std::max<std::size_t>(1, num_nodes_)) {
    PolicyNode& oldest = *ghost_queue_.first();
    ghost_queue_.remove(oldest);
    const Key key = oldest.key;
    ghosts_.erase(key);
  }
}

}  // namespace vitcache
