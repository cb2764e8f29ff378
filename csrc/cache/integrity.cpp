// Ledger::find_violations: the invariants of the ledger, computed anew from its entries.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache/ledger.h"

namespace vitcache {
namespace {

class Violations {
 public:
  void differ(const std::string& name, std::int64_t expected, std::int64_t recorded) {
    if (expected != recorded)
      found.push_back(name + ": expected " + std::to_string(expected) + ", recorded " +
                      std::to_string(recorded));
  }

  std::vector<std::string> found;
};

// The keys that are in one list and not in the other, and those that a list contains twice.
std::int64_t count_differences(std::vector<Key> keys, std::vector<Key> others) {
  const auto before = [](const Key& a, const Key& b) { return a.words < b.words; };
  std::sort(keys.begin(), keys.end(), before);
  std::sort(others.begin(), others.end(), before);
  std::vector<Key> different;
  std::set_symmetric_difference(keys.begin(), keys.end(), others.begin(), others.end(),
                                std::back_inserter(different), before);
  return static_cast<std::int64_t>(different.size());
}

// Pages that do not have exactly one owner, ascending; empty if every page has one owner.
std::string describe_wrong_pages(std::int64_t num_pages, const Pages& owned) {
  std::vector<std::int64_t> owners(static_cast<std::size_t>(num_pages));
  for (const std::int64_t page : owned) ++owners[static_cast<std::size_t>(page)];
  std::string wrong;
  for (std::size_t page = 0; page < owners.size(); ++page)
    if (owners[page] != 1) wrong += (wrong.empty() ? "" : ", ") + std::to_string(page);
  return wrong;
}

std::string describe_owners(const std::string& tier, const std::string& pages) {
  return tier + " pages [" + pages + "] do not have exactly one owner";
}

}  // namespace

std::vector<std::string> Ledger::find_violations() const {
  Violations violations;
  std::vector<const Index*> indexes{index_.get()};
  for (const auto& index : stale_) indexes.push_back(index.get());
  std::vector<EntryPtr> entries;
  for (const auto& [address, entry] : dropped_) entries.push_back(entry);
  for (const Index* index : indexes)
    index->visit_all([&entries](const EntryPtr& entry) { entries.push_back(entry); });

  std::int64_t leases = 0;
  for (const Tier* tier : tiers()) {
    const std::string& name = tier->layout().name;
    std::int64_t leased_pages = 0, pending_pages = 0;
    Pages owned = tier->free_pages();
    const auto own = [&owned](const Pages& pages) { owned.insert(owned.end(), pages.begin(), pages.end()); };
    for (const EntryPtr& entry : entries) {
      if (entry->tier != tier) continue;
      own(entry->page_numbers());
      leases += entry->leases;
      if (entry->leases > 0) leased_pages += entry->num_pages;
      violations.differ("pages of an entry", tier->pages_for(entry->num_rows, entry->row_width()),
                        entry->num_pages);
    }
    for (const PendingPtr& pending : pending_) {
      pending_pages += pending->num_pages_of(*tier);
      if (pending->tier.get() == tier) {
        own(pending->pages);
        own(pending->leftover_pages);
      }
      if (pending->host_copy && pending->host_copy->tier.get() == tier) own(pending->host_copy->pages);
      for (const DemotionPtr& demotion : pending->demotions)
        if (demotion->tier.get() == tier) own(demotion->pages);
    }
    const std::string wrong = describe_wrong_pages(tier->layout().num_pages, owned);
    if (!wrong.empty()) violations.found.push_back(describe_owners(name, wrong));
    violations.differ("leased " + name + " pages", leased_pages, tier->leased_pages);
    violations.differ("pending " + name + " pages", pending_pages, tier->pending_pages);
    for (const Index* index : indexes)
      violations.differ("keys in only one of index and policy of the " + name + " tier", 0,
                        count_differences(index->keys_of(*tier), index->keys_of_policy(*tier)));
  }
  violations.differ("leases", leases, num_leases_);
  const auto is_leased = [](const auto& dropped) { return dropped.second->leases > 0; };
  violations.differ("dropped entries that wait for a release",
                    std::count_if(dropped_.begin(), dropped_.end(), is_leased),
                    static_cast<std::int64_t>(dropped_.size()));
  for (const Index* index : indexes)
    violations.differ("host copies without a device entry", 0, index->num_orphaned_copies());

  std::int64_t num_mislabelled = 0;
  for (const Index* index : indexes)
    index->visit_all([&num_mislabelled, index](const EntryPtr& entry) {
      const EntryPtr* copy = index->find_host_copy(entry->key);
      num_mislabelled += copy != nullptr && (*copy)->tenant != entry->tenant;
    });
  violations.differ("host copies of another tenant than their entry", 0, num_mislabelled);
  violations.differ("calls that are due because of offers", offers_.size() > 0, num_due_releases_ == 0);
  violations.differ("offers above their limit", 0, offers_.size() > Offers::kMostWaiting);

  for (const Key& key : evicted_.keys())
    violations.differ("entries whose key is recorded as evicted", 0, contains(key));
  violations.differ("evicted keys that are recorded too often or too long", 0, evicted_.num_excess());

  std::unordered_set<DemotionPtr> demotions;
  for (const PendingPtr& pending : pending_)
    if (!pending->is_early) demotions.insert(pending->demotions.begin(), pending->demotions.end());
  const auto is_orphan = [&demotions](const auto& demotion) { return demotions.count(demotion.second) == 0; };
  violations.differ("demotions without a pending write", 0,
                    std::count_if(pending_demotions_.begin(), pending_demotions_.end(), is_orphan));
  violations.differ("entries", size() + static_cast<std::int64_t>(demotions.size()),
                    counts_.insertions - counts_.evictions);
  return std::move(violations.found);
}

}  // namespace vitcache
