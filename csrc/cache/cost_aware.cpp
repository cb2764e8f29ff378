#include "cache/cost_aware.h"

#include <algorithm>
#include <cmath>

namespace vitcache {
namespace {

// The order of the comparisons makes a value that is not a number the least value.
double clamp_value(double value) {
  return std::min(value > CostAware::kLeastValue ? value : CostAware::kLeastValue, CostAware::kMostValue);
}

std::int64_t class_number(double value, bool is_new, double fading, double hit_chance) {
  if (is_new)
    value += CostAware::kClassesPerDoubling * std::log2(std::max(hit_chance, CostAware::kLeastChance));
  return static_cast<std::int64_t>(std::floor(value + fading));
}

}  // namespace

CostAware::CostAware(std::int64_t capacity_pages) : evicted_(capacity_pages) {}

void CostAware::insert(PolicyNode& node, std::int64_t pages, double cost) {
  const double value = kClassesPerDoubling * std::log2(clamp_value(cost / static_cast<double>(pages)));
  const bool is_new = !evicted_.contains(node.key);
  Progress progress = progress_;
  if (is_new)
    progress.hit_chance -= progress.hit_chance / kLearnedFrom;
  else
    progress = after_hit(true, num_nodes_ + 1);
  const std::int64_t number = class_number(value, is_new, progress.fading, progress.hit_chance);
  PolicyQueue& to = classes_[number];  // throws, if at all, before anything is changed
  to.append(node);
  node.queue = number;
  node.value = value;
  node.is_new = is_new;
  progress_ = progress;
  ++num_nodes_;
}

void CostAware::touch(PolicyNode& node) {
  const Progress progress = after_hit(node.is_new, num_nodes_);
  const std::int64_t number = class_number(node.value, false, progress.fading, progress.hit_chance);
  PolicyQueue& to = classes_[number];  // throws, if at all, before anything is changed
  const auto from = classes_.find(node.queue);
  from->second.remove(node);
  to.append(node);
  if (from->second.is_empty()) classes_.erase(from);
  node.queue = number;
  node.is_new = false;
  progress_ = progress;
}

void CostAware::remove(PolicyNode& node) {
  const auto from = classes_.find(node.queue);
  from->second.remove(node);
  if (from->second.is_empty()) classes_.erase(from);
  --num_nodes_;
}

void CostAware::evict(PolicyNode& node) {
  remove(node);
  evicted_.add(node.key);
}

bool CostAware::is_worth_copy(const PolicyNode& node) const {
  return !node.is_new || progress_.hit_chance > kLeastChance;
}

PolicyNode* CostAware::first_victim() const {
  return classes_.empty() ? nullptr : classes_.begin()->second.first();
}

PolicyNode* CostAware::next_victim(const PolicyNode& node) const {
  if (node.next != nullptr) return node.next;
  const auto next = classes_.upper_bound(node.queue);
  return next == classes_.end() ? nullptr : next->second.first();
}

// Returns the progress after a hit of a node, which `is_new` before the hit, among `num_nodes` nodes.
CostAware::Progress CostAware::after_hit(bool is_new, std::int64_t num_nodes) const {
  Progress progress = progress_;
  progress.fading += kFadingPerRound / static_cast<double>(num_nodes);
  if (is_new) progress.hit_chance = std::min(progress.hit_chance + 1.0 / kLearnedFrom, 1.0);
  return progress;
}

}  // namespace vitcache
