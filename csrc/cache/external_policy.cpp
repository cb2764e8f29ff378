#include "cache/external_policy.h"

namespace vitcache {

void ExternalPolicy::insert(PolicyNode& node, std::int64_t pages, double cost) {
  const auto added = nodes_.emplace(node.key, &node).first;
  try {
    events_.push_back({PolicyEvent::Kind::kInsert, node.key, pages, cost});
  } catch (...) {
    nodes_.erase(added);
    throw;
  }
  node.queue = kUnordered;
  queue_.append(node);
}

void ExternalPolicy::touch(PolicyNode& node) {
  if (events_.empty() || events_.back().kind != PolicyEvent::Kind::kTouch || events_.back().key != node.key)
    log(PolicyEvent::Kind::kTouch, node.key);
  ++events_.back().hits;
  queue_.remove(node);
  queue_.append(node);
}

void ExternalPolicy::remove(PolicyNode& node) {
  log(PolicyEvent::Kind::kRemove, node.key);
  unlink(node);
}

void ExternalPolicy::evict(PolicyNode& node) {
  log(PolicyEvent::Kind::kEvict, node.key);
  unlink(node);
}

bool ExternalPolicy::is_worth_copy(const PolicyNode& node) const {
  return node.queue == kUnordered || order_[static_cast<std::size_t>(node.queue)].is_worth_copy;
}

PolicyNode* ExternalPolicy::first_victim() const { return find_ordered(first_); }

PolicyNode* ExternalPolicy::next_victim(const PolicyNode& node) const {
  if (node.queue == kUnordered) return find_unordered(node.next);
  return find_ordered(static_cast<std::size_t>(node.queue) + 1);
}

std::vector<PolicyEvent> ExternalPolicy::take_events() noexcept {
  std::vector<PolicyEvent> events;
  events.swap(events_);
  return events;
}

void ExternalPolicy::set_order(const std::vector<std::pair<Key, bool>>& order) {
  std::vector<Place> places;
  places.reserve(order.size());  // throws, if at all, before anything is changed
  for (const Place& place : order_)
    if (place.node != nullptr) place.node->queue = kUnordered;
  for (const auto& [key, is_worth_copy] : order) {
    const auto found = nodes_.find(key);
    if (found == nodes_.end() || found->second->queue != kUnordered) continue;
    found->second->queue = static_cast<std::int64_t>(places.size());
    places.push_back({found->second, is_worth_copy});
  }
  order_.swap(places);
  first_ = 0;
}

// Appends an event; throws, if at all, before the caller has changed anything.
void ExternalPolicy::log(PolicyEvent::Kind kind, const Key& key) { events_.push_back({kind, key}); }

void ExternalPolicy::unlink(PolicyNode& node) {
  nodes_.erase(node.key);
  queue_.remove(node);
  if (node.queue == kUnordered) return;
  order_[static_cast<std::size_t>(node.queue)].node = nullptr;
  while (first_ < order_.size() && order_[first_].node == nullptr) ++first_;
}

// Returns the first node at or behind a place of the order; if every node behind it has been removed, the
// first node without a place.
PolicyNode* ExternalPolicy::find_ordered(std::size_t place) const {
  for (; place < order_.size(); ++place)
    if (order_[place].node != nullptr) return order_[place].node;
  return find_unordered(queue_.first());
}

PolicyNode* ExternalPolicy::find_unordered(PolicyNode* node) {
  while (node != nullptr && node->queue != kUnordered) node = node->next;
  return node;
}

}  // namespace vitcache
