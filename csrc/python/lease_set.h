// The leases of one step, without a Python object per lease.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cache/ledger.h"
#include "placement/destination.h"
#include "placement/placement.h"
#include "python/lease.h"

namespace vitcache {

// Pins of many entries, by position; a position without an entry is a miss. Released as a whole. Destroying
// the set releases it.
class LeaseSet {
 public:
  // A set of `count` misses.
  LeaseSet(std::shared_ptr<Ledger> ledger, std::size_t count) : ledger_(std::move(ledger)), entries_(count) {}
  ~LeaseSet() { release(); }
  LeaseSet(const LeaseSet&) = delete;
  LeaseSet& operator=(const LeaseSet&) = delete;

  // Takes over the pin of an entry at a position that is a miss; null leaves it a miss.
  void set(std::size_t position, EntryPtr entry) { entries_[position] = std::move(entry); }

  const std::vector<EntryPtr>& entries() const { return entries_; }
  const std::shared_ptr<Ledger>& ledger() const { return ledger_; }

  // Adds pins at the positions that are misses here and not in `other`, which is empty afterwards.
  void take(LeaseSet& other);
  // The positions of misses.
  std::vector<std::int64_t> misses() const;
  std::int64_t num_hits() const;
  // The positions of entries in the host tier.
  std::vector<std::int64_t> host_hits() const;

  // Makes the entries the sources of a placement: position `i` is source `i`. Returns the positions that it
  // leaves to Python: misses, and entries whose width the placement does not take or that are not on the
  // destination's device.
  std::vector<std::int64_t> add_sources(Placement& placement, const Destination& destination) const;

  // Marks all entries as read on `stream`. If the stream has to wait for fences before it may read, then
  // nothing is marked unless `has_waited`, and the fences are returned.
  FenceSet use(std::int64_t stream, bool has_waited);
  // Drops the fences behind the writes of entries: `events` are the events of these fences, whose
  // work is complete.
  void forget_fences(const pybind11::set& events);
  // Releases the pin at one position, which then counts as a miss.
  void release_one(std::int64_t position);
  void release();

 private:
  std::shared_ptr<Ledger> ledger_;
  std::vector<EntryPtr> entries_;
  ReadStreams streams_;
};

}  // namespace vitcache
