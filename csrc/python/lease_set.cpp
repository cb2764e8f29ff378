#include "python/lease_set.h"

#include <cstddef>

#include "python/fences.h"
#include "python/token.h"

namespace vitcache {

void LeaseSet::take(LeaseSet& other) {
  for (std::size_t i = 0; i < entries_.size() && i < other.entries_.size(); ++i)
    if (entries_[i] == nullptr) entries_[i] = std::move(other.entries_[i]);
  other.release();
}

std::vector<std::int64_t> LeaseSet::misses() const {
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < entries_.size(); ++i)
    if (entries_[i] == nullptr) positions.push_back(static_cast<std::int64_t>(i));
  return positions;
}

std::int64_t LeaseSet::num_hits() const {
  std::int64_t hits = 0;
  for (const EntryPtr& entry : entries_) hits += entry != nullptr;
  return hits;
}

std::vector<std::int64_t> LeaseSet::host_hits() const {
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < entries_.size(); ++i)
    if (entries_[i] != nullptr && entries_[i]->tier == ledger_->host())
      positions.push_back(static_cast<std::int64_t>(i));
  return positions;
}

std::vector<std::int64_t> LeaseSet::add_sources(Placement& placement, const Destination& destination) const {
  std::vector<std::int64_t> left;
  placement.resize_sources(static_cast<std::int64_t>(entries_.size()));
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry* const entry = entries_[i].get();
    const auto item = static_cast<std::int64_t>(i);
    if (entry == nullptr || entry->rows.on_cuda != destination.on_cuda ||
        entry->rows.device_id != destination.device_id ||
        !placement.fit_source(item, entry->rows.source, entry->rows.width, destination))
      left.push_back(item);
  }
  return left;
}

FenceSet LeaseSet::use(std::int64_t stream, bool has_waited) {
  FenceSet fences;
  if (streams_.contains(stream)) return fences;
  if (!has_waited)
    for (const EntryPtr& entry : entries_)
      if (entry != nullptr && entry->written.stream != stream) fences.add(entry->written);
  if (fences.empty()) streams_.add(stream);
  return fences;
}

void LeaseSet::forget_fences(const pybind11::set& events) {
  const Mutation mutation;
  for (const EntryPtr& entry : entries_)
    if (entry != nullptr) forget_passed(entry->written, events);
}

void LeaseSet::release_one(std::int64_t position) {
  const Mutation mutation;
  EntryPtr entry = std::move(entries_[static_cast<std::size_t>(position)]);
  entries_[static_cast<std::size_t>(position)] = nullptr;
  if (entry != nullptr) ledger_->release(std::move(entry), streams_.list());
}

void LeaseSet::release() {
  const Mutation mutation;
  for (EntryPtr& entry : entries_) {
    if (entry == nullptr) continue;
    ledger_->release(std::move(entry), streams_.list());
    entry = nullptr;
  }
}

}  // namespace vitcache
