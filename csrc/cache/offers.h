// Offers: entries that the caller should copy to the tiers below the host tier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cache/entry.h"
#include "cache/key.h"

namespace vitcache {

// An entry that was worth a copy to the tiers below. It may have left the cache since.
struct Offer {
  Key key;
  std::int64_t num_rows;
  std::int64_t row_width;
  Key tenant;
  std::int64_t num_bytes;
};

// The offers that wait for the caller, the oldest first, each entry at most once.
class Offers {
 public:
  static constexpr std::size_t kMostWaiting = 1024;

  // Entries are offered at this number of hits, 0 for when they are inserted; -1 for none.
  void set_hits(std::int64_t hits) { hits_ = hits < 0 ? std::numeric_limits<std::int64_t>::max() : hits; }
  std::int64_t hits() const { return hits_; }

  // Offers an entry, unless it was offered before. If too many offers wait, nothing changes, so that a later
  // hit offers the entry again.
  void add(Entry& entry) {
    if (entry.is_offered || entry.hits < entry.least_hits_of_offer || waiting_.size() >= kMostWaiting) return;
    entry.is_offered = true;
    waiting_.push_back({entry.key, entry.num_rows, entry.row_width(), entry.tenant, entry.num_bytes()});
  }
  // A refused entry is offered again after as many hits as it had: while all offers are refused, few look-ups
  // have to hand one over.
  static void retract(Entry& entry) {
    entry.is_offered = false;
    entry.least_hits_of_offer = 2 * entry.hits;
  }
  std::vector<Offer> take() { return std::exchange(waiting_, {}); }
  std::size_t size() const { return waiting_.size(); }

 private:
  std::int64_t hits_ = std::numeric_limits<std::int64_t>::max();
  std::vector<Offer> waiting_;
};

}  // namespace vitcache
