// Policies: the order in which a tier evicts its entries.
//
// Thread rule: a policy is not thread-safe. Its owner makes one call at a time. No policy calls Python or
// needs the GIL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cache/key.h"

namespace vitcache {

// The place of a key in a policy. An entry of the cache derives from it, so a policy finds the place of an
// entry without a look-up. A node is in at most one policy at a time, and its address must not change while
// it is in one. Only the policy writes the members behind `key`.
struct PolicyNode {
  PolicyNode() = default;
  explicit PolicyNode(const Key& node_key) : key(node_key) {}
  PolicyNode(const PolicyNode&) = delete;
  PolicyNode& operator=(const PolicyNode&) = delete;
  ~PolicyNode() = default;

  Key key{};
  PolicyNode* previous = nullptr;  // neighbors in the node's queue
  PolicyNode* next = nullptr;
  std::int64_t queue = 0;  // the number of the node's queue, for policies with several queues
  std::int64_t pages = 0;
  double value = 0;
  bool is_new = true;  // whether the key was never hit
};

// A policy does not own its nodes: it may be destroyed before or after them, but a node must be removed
// before it is destroyed if the policy is used later.
//
// Only std::bad_alloc is thrown. Then the call has changed nothing.
class Policy {
 public:
  Policy() = default;
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;
  virtual ~Policy() = default;

  // Adds a node, which must be in no policy. No other node of the policy may have its key. `pages`, at least
  // 1, is the number of pages of the entry. `cost` is the cost that a hit saves, in any unit that all nodes
  // share.
  virtual void insert(PolicyNode& node, std::int64_t pages, double cost) = 0;

  // The node that is passed to each of the following functions must be in the policy.

  // Records a hit.
  virtual void touch(PolicyNode& node) = 0;
  // Removes a node whose entry was dropped or replaced.
  virtual void remove(PolicyNode& node) = 0;
  // Removes a node whose entry is evicted. The policy may learn from the eviction.
  virtual void evict(PolicyNode& node) = 0;
  // Whether the entry, when it is evicted, is worth a copy to the next tier.
  virtual bool is_worth_copy(const PolicyNode& node) const = 0;

  // The order of eviction, which contains every node once: the next victim, and the victim after `node`; null
  // at the end. The policy must not change during an iteration.
  virtual PolicyNode* first_victim() const = 0;
  virtual PolicyNode* next_victim(const PolicyNode& node) const = 0;
};

// Returns a new, empty policy for a tier of `capacity_pages` pages. The names are "lru", "s3fifo" and "cost".
// Throws std::invalid_argument if no policy is called `name`; the message lists all names.
std::unique_ptr<Policy> make_policy(const std::string& name, std::int64_t capacity_pages);

}  // namespace vitcache
