// The objects of Python that own or change a ledger.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/external_policy.h"
#include "cache/ledger.h"
#include "pipeline/step_plan.h"
#include "python/lease_set.h"
#include "python/token.h"

namespace vitcache {

// A pending write or pending copies, in the hands of Python. If it is destroyed unfinished, for instance
// because an interrupt prevented its owner from receiving it, its pages are freed; if streams may still write
// them, the ledger keeps them until a caller has a fence behind these streams.
struct PendingHandle {
  PendingPtr pending;
  std::weak_ptr<Ledger> ledger;
  ReadStreams streams;                      // that were allowed to write the pages
  bool is_used = false;                     // also on the CPU, which is not recorded
  std::optional<std::int64_t> copy_stream;  // of copies that are being queued, and have no fence yet

  PendingHandle(PendingPtr made, const std::shared_ptr<Ledger>& owner)
      : pending(std::move(made)), ledger(owner) {}
  ~PendingHandle();
  PendingHandle(const PendingHandle&) = delete;
  PendingHandle& operator=(const PendingHandle&) = delete;
};

// Releases that were taken from the queue, until they have fences. If the batch is destroyed before that,
// they return to the queue.
struct ReleaseBatch {
  std::vector<Release> releases;
  std::weak_ptr<Ledger> ledger;

  ReleaseBatch(std::vector<Release> taken, const std::shared_ptr<Ledger>& owner)
      : releases(std::move(taken)), ledger(owner) {}
  ~ReleaseBatch();
  ReleaseBatch(const ReleaseBatch&) = delete;
  ReleaseBatch& operator=(const ReleaseBatch&) = delete;

  std::vector<std::int64_t> streams() const;
  // `fences` has one fence per stream, behind the reads of every release.
  void finish(const std::vector<pybind11::tuple>& fences);
};

// The tier of this name. Throws std::invalid_argument if the cache has no such tier.
Tier& tier_of(Ledger& ledger, const std::string& name);

// The policy of a tier, which is written in Python. Throws std::invalid_argument if it is native.
ExternalPolicy& external_policy(Ledger& ledger, const std::string& tier);

// A ledger, with the Python objects that its leases need.
class LedgerHandle {
 public:
  // `policy` is empty for a policy that is written in Python. `memory` names memory that a forked child
  // cannot use; empty if it can use all memory of the tiers.
  LedgerHandle(const std::string& policy, std::shared_ptr<Tier> device,
               const std::optional<std::shared_ptr<Tier>>& host, pybind11::type lease_type,
               pybind11::object device_tier, pybind11::object host_tier, std::int64_t num_recorded,
               std::string memory);
  ~LedgerHandle();
  LedgerHandle(const LedgerHandle&) = delete;
  LedgerHandle& operator=(const LedgerHandle&) = delete;

  // Throws std::runtime_error if the cache was closed, or if this process cannot use its memory.
  Ledger& open() const;
  Ledger& any() const { return *ledger_; }
  const std::shared_ptr<Ledger>& shared() const { return ledger_; }

  // Returns a lease or None. Returns NotImplemented if `key` is not 32 bytes, if `num_rows` is neither None
  // nor a small int, or if the handle `is_due`: Python then checks, drains and asks again.
  pybind11::object get(pybind11::handle key, pybind11::handle num_rows) const;

  // Returns a lease that counts neither as a hit nor as a miss (`Ledger::peek`), or None; None once the cache
  // is closed.
  pybind11::object peek(pybind11::handle key, std::int64_t num_rows, std::int64_t row_width,
                        bool is_on_host) const;

  // Whether Python must unpin released leases, take offers, or call policies that are written in Python.
  bool is_due() const;

  // Row widths that look-ups expect, one per key or item, -1 for any width. None: any width for all.
  using RowWidths = std::optional<std::vector<std::int64_t>>;

  // `get` of many checked keys in one step; `num_rows` has one number per key, -1 for any number.
  pybind11::list get_many(const pybind11::list& keys, const std::vector<std::int64_t>& num_rows,
                          const RowWidths& row_widths) const;

  // `get_many` that makes one object. A key may be None.
  std::shared_ptr<LeaseSet> pin_all(const pybind11::list& keys, const std::vector<std::int64_t>& num_rows,
                                    const RowWidths& row_widths) const;

  // Looks up the items of a plan that have a key.
  std::shared_ptr<LeaseSet> pin_plan(const StepPlan& plan, const RowWidths& row_widths) const;

  // Returns a lease of its own on an entry of a set, or None for a miss.
  pybind11::object lease_one(const LeaseSet& leases, std::size_t position) const;

  // Inserts the rows of a pending write, and returns a lease on them; None if they were not inserted.
  pybind11::object finish_leased(const PendingHandle& handle, const pybind11::object& fence) const;

  // Returns null, or a handle on the pending write that `begin` returned.
  template <typename Begin>
  std::shared_ptr<PendingHandle> begin(Begin begin) const {
    const Mutation mutation;
    PendingPtr pending = begin(open());
    return pending == nullptr ? nullptr : std::make_shared<PendingHandle>(std::move(pending), ledger_);
  }

 private:
  pybind11::object make(EntryPtr entry) const;

  std::shared_ptr<Ledger> ledger_;
  std::string unshared_memory_;
  pid_t process_;  // that made the cache
  std::int64_t num_forks_;
  bool is_external_;  // the policy is written in Python
  pybind11::type lease_type_;
  pybind11::object device_tier_;
  pybind11::object host_tier_;
};

}  // namespace vitcache
