// A doubly linked queue of policy nodes, which contain the links. No operation allocates memory, hashes a key
// or walks the queue.
//
// Thread rule: not thread-safe; the policy that owns the queue makes one call at a time.
#pragma once

#include "cache/policy.h"

namespace vitcache {

class PolicyQueue {
 public:
  bool is_empty() const { return first_ == nullptr; }

  // Null if the queue is empty.
  PolicyNode* first() const { return first_; }
  PolicyNode* last() const { return last_; }

  // Appends a node that is in no queue.
  void append(PolicyNode& node) {
    node.previous = last_;
    node.next = nullptr;
    (last_ == nullptr ? first_ : last_->next) = &node;
    last_ = &node;
  }

  // Removes a node of this queue.
  void remove(PolicyNode& node) {
    (node.previous == nullptr ? first_ : node.previous->next) = node.next;
    (node.next == nullptr ? last_ : node.next->previous) = node.previous;
    node.previous = node.next = nullptr;
  }

  // Moves all nodes of `other`, in their order, to the end of this queue.
  void append_all(PolicyQueue& other) {
    if (other.is_empty()) return;
    other.first_->previous = last_;
    (last_ == nullptr ? first_ : last_->next) = other.first_;
    last_ = other.last_;
    other.first_ = other.last_ = nullptr;
  }

 private:
  PolicyNode* first_ = nullptr;
  PolicyNode* last_ = nullptr;
};

}  // namespace vitcache
