#include "python/ledger_handle.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>

#include "cache/policy.h"
#include "python/fences.h"
#include "python/keys.h"
#include "python/lease.h"
#include "python/waits.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// A look-up asks its caller to call policies that are written in Python once there are this many events.
constexpr std::size_t kEventsPerBatch = 4096;

MakePolicy policy_maker(const std::string& policy) {
  return [policy](std::int64_t capacity_pages) -> std::unique_ptr<Policy> {
    if (policy.empty()) return std::make_unique<ExternalPolicy>();
    return make_policy(policy, capacity_pages);
  };
}

bool read_num_rows(py::handle value, std::int64_t& rows) {
  if (value.is_none()) return true;
  if (!PyLong_CheckExact(value.ptr())) return false;
  int overflow = 0;
  rows = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  return overflow == 0 && rows >= 0;
}

}  // namespace

PendingHandle::~PendingHandle() {
  const Mutation mutation;
  if (const auto owner = ledger.lock()) {
    if (copy_stream) streams.add(*copy_stream);
    owner->abandon(pending, streams.take());
  }
  pending.reset();
}

ReleaseBatch::~ReleaseBatch() {
  const Mutation mutation;
  if (const auto owner = ledger.lock())
    for (Release& release : releases) owner->release(std::move(release.entry), std::move(release.streams));
  releases.clear();
}

std::vector<std::int64_t> ReleaseBatch::streams() const {
  std::unordered_set<std::int64_t> streams;
  for (const Release& release : releases) streams.insert(release.streams.begin(), release.streams.end());
  return {streams.begin(), streams.end()};
}

void ReleaseBatch::finish(const std::vector<py::tuple>& fences) {
  const Mutation mutation;
  std::vector<Fence> native;
  native.reserve(fences.size());
  for (const py::tuple& fence : fences) native.push_back(to_fence(fence));
  const auto owner = ledger.lock();
  for (Release& release : releases) {
    for (const Fence& fence : native)
      if (std::find(release.streams.begin(), release.streams.end(), fence.stream) != release.streams.end())
        release.entry->record_read(fence);
    if (owner != nullptr) owner->unpin(*release.entry);
  }
  releases.clear();
}

Tier& tier_of(Ledger& ledger, const std::string& name) {
  Tier* const tier = name == "device" ? &ledger.device() : ledger.host();
  if (tier == nullptr) throw std::invalid_argument("the cache has no " + name + " tier");
  return *tier;
}

ExternalPolicy& external_policy(Ledger& ledger, const std::string& tier) {
  auto* const policy = dynamic_cast<ExternalPolicy*>(&ledger.index().policy_of(tier_of(ledger, tier)));
  if (policy == nullptr) throw std::invalid_argument("the policy of the " + tier + " tier is native");
  return *policy;
}

LedgerHandle::LedgerHandle(const std::string& policy, std::shared_ptr<Tier> device,
                           const std::optional<std::shared_ptr<Tier>>& host, py::type lease_type,
                           py::object device_tier, py::object host_tier, std::int64_t num_recorded,
                           std::string memory)
    : ledger_(std::make_shared<Ledger>(policy_maker(policy), std::move(device), host.value_or(nullptr),
                                       num_recorded)),
      unshared_memory_(std::move(memory)),
      process_(getpid()),
      num_forks_(num_forks()),
      is_external_(policy.empty()),
      lease_type_(std::move(lease_type)),
      device_tier_(std::move(device_tier)),
      host_tier_(std::move(host_tier)) {}

LedgerHandle::~LedgerHandle() {
  const Mutation mutation;
  ledger_.reset();
}

Ledger& LedgerHandle::open() const {
  if (ledger_->is_closed()) throw std::runtime_error("the cache was closed");
  if (!unshared_memory_.empty() && num_forks() != num_forks_)
    throw std::runtime_error("the cache was made in process " + std::to_string(process_) +
                             "; its child, process " + std::to_string(getpid()) + ", cannot use " +
                             unshared_memory_ + ": make a cache in the child");
  return *ledger_;
}

py::object LedgerHandle::get(py::handle key, py::handle num_rows) const {
  const Mutation mutation;
  Ledger& ledger = open();
  std::int64_t rows = -1;
  if (!is_key(key) || !read_num_rows(num_rows, rows) || is_due())
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  EntryPtr entry = ledger.pin(read_key(key), rows);
  return entry == nullptr ? py::none() : make(std::move(entry));
}

bool LedgerHandle::is_due() const {
  if (ledger_->is_due()) return true;
  if (!is_external_) return false;
  std::size_t events = external_policy(*ledger_, "device").num_events();
  if (ledger_->host() != nullptr) events += external_policy(*ledger_, "host").num_events();
  return events >= kEventsPerBatch;
}

py::object LedgerHandle::peek(py::handle key, std::int64_t num_rows, std::int64_t row_width,
                              bool is_on_host) const {
  const Mutation mutation;
  if (ledger_->is_closed()) return py::none();
  EntryPtr entry = open().peek(read_key(key), num_rows, row_width, is_on_host);
  return entry == nullptr ? py::none() : make(std::move(entry));
}

py::list LedgerHandle::get_many(const py::list& keys, const std::vector<std::int64_t>& num_rows,
                                const RowWidths& row_widths) const {
  py::list made;
  const Mutation mutation;
  Ledger& ledger = open();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const py::handle key = PyList_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
    EntryPtr entry = ledger.pin(read_key(key), num_rows[i], row_widths ? row_widths->at(i) : -1);
    // Made before the next look-up, which may count another hit of this entry.
    made.append(entry == nullptr ? py::none() : make(std::move(entry)));
  }
  return made;
}

std::shared_ptr<LeaseSet> LedgerHandle::pin_all(const py::list& keys,
                                                const std::vector<std::int64_t>& num_rows,
                                                const RowWidths& row_widths) const {
  const Mutation mutation;
  Ledger& ledger = open();
  const auto leases = std::make_shared<LeaseSet>(ledger_, keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const py::handle key = PyList_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
    if (!key.is_none())
      leases->set(i, ledger.pin(read_key(key), num_rows[i], row_widths ? row_widths->at(i) : -1));
  }
  return leases;
}

std::shared_ptr<LeaseSet> LedgerHandle::pin_plan(const StepPlan& plan, const RowWidths& row_widths) const {
  const Mutation mutation;
  Ledger& ledger = open();
  const auto leases = std::make_shared<LeaseSet>(ledger_, plan.items().size());
  for (std::size_t i = 0; i < plan.items().size(); ++i) {
    const PlannedItem& item = plan.items()[i];
    if (!item.has_key) continue;
    const std::int64_t planned_width = item.row_width == 0 ? -1 : item.row_width;
    leases->set(i, ledger.pin(item.key, item.num_rows, row_widths ? row_widths->at(i) : planned_width));
  }
  return leases;
}

py::object LedgerHandle::lease_one(const LeaseSet& leases, std::size_t position) const {
  const EntryPtr& entry = leases.entries().at(position);
  if (entry == nullptr) return py::none();
  ledger_->pin_entry(*entry);
  return make(entry);
}

py::object LedgerHandle::finish_leased(const PendingHandle& handle, const py::object& fence) const {
  const Mutation mutation;
  EntryPtr entry = ledger_->finish_and_pin(handle.pending, to_optional_fence(fence));
  return entry == nullptr ? py::none() : make(std::move(entry));
}

py::object LedgerHandle::make(EntryPtr entry) const {
  const py::object& tier = entry->tier == ledger_->host() ? host_tier_ : device_tier_;
  return make_lease(lease_type_, std::move(entry), ledger_, tier);
}

}  // namespace vitcache
