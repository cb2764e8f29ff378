// The policy "s3fifo": new keys enter a small queue, and a hit moves them to the main queue.
//
// The method is from Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023. The small
// queue has a tenth of the pages. In the main queue, each hit gives a key another lap before it is evicted.
// The ghost queue remembers keys that were evicted from the small queue: if they are inserted again, they
// enter the main queue. In the paper, the search for a victim walks over the queues and moves each key that
// was hit to its next lap. Here the hit itself moves its key, to the main queue or to a later lap, so no
// eviction waits for a walk.
//
// Thread rule: as for every policy (policy.h), the owner makes one call at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "cache/policy.h"
#include "cache/queue.h"

namespace vitcache {

// Evicts from the small queue of new keys while it is full, and from the main queue otherwise. Only `evict`
// allocates memory.
class S3Fifo final : public Policy {
 public:
  static constexpr std::int64_t kSmallPart = 10;
  static constexpr std::int64_t kMostLaps = 3;

  explicit S3Fifo(std::int64_t capacity_pages);

  // Adds a node to the small queue, or to the main queue if the ghost queue contains its key.
  void insert(PolicyNode& node, std::int64_t pages, double cost) override;
  // Moves a node to the main queue or, in it, one lap later: at most `kMostLaps` laps after the current lap.
  void touch(PolicyNode& node) override;
  void remove(PolicyNode& node) override;
  // Removes a node. If it is in the small queue, adds its key to the ghost queue.
  void evict(PolicyNode& node) override;
  // Whether the node is in the main queue: it was hit, or inserted again soon after its eviction.
  bool is_worth_copy(const PolicyNode& node) const override;
  // The small queue first if it is full, else the main queue first; each in its order.
  PolicyNode* first_victim() const override;
  PolicyNode* next_victim(const PolicyNode& node) const override;

  // The length of the ghost queue. After every call it is at most the number of nodes in the other two queues
  // together, or 1 if that is 0.
  std::size_t num_ghosts() const { return ghosts_.size(); }

 private:
  using Queues = std::array<const PolicyQueue*, kMostLaps + 2>;

  // `PolicyNode::queue` of a node in the small queue. A node in the main queue has the number of its lap,
  // from 1.
  static constexpr std::int64_t kSmall = 0;

  PolicyQueue& lap_queue(std::int64_t lap) { return laps_[static_cast<std::size_t>(lap % kMostLaps)]; }
  PolicyQueue& queue_of(const PolicyNode& node);
  Queues eviction_order() const;
  void begin_lap(std::int64_t lap);
  void trim_ghosts();

  std::int64_t small_capacity_;
  std::int64_t small_pages_ = 0;
  std::size_t num_nodes_ = 0;  // in the small and the main queue
  PolicyQueue small_;
  // The main queue: the current lap with the remaining nodes of earlier laps, and the next `kMostLaps` laps.
  // No node joins the current lap or an earlier lap, so the order in `current_` is fixed.
  std::int64_t lap_ = 0;  // the latest lap that a victim was in
  PolicyQueue current_;
  std::array<PolicyQueue, kMostLaps> laps_;
  std::unordered_map<Key, PolicyNode, KeyHash> ghosts_;
  PolicyQueue ghost_queue_;  // of the nodes in `ghosts_`, whose addresses are fixed
};

}  // namespace vitcache
