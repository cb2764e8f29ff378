#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache/external_policy.h"
#include "cache/ledger.h"
#include "cache/policy.h"
#include "pipeline/step_plan.h"
#include "placement/destination.h"
#include "placement/placement.h"
#include "python/bindings.h"
#include "python/fences.h"
#include "python/keys.h"
#include "python/lease.h"
#include "python/lease_set.h"
#include "python/token.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// A look-up asks its caller to unpin the released leases once there are this many. Releases that wait never
// change the result of a look-up.
constexpr std::size_t kReleasesPerBatch = 64;
// The same for the events of policies that are written in Python.
constexpr std::size_t kEventsPerBatch = 4096;

// A pending write or pending copies, in the hands of Python. If it is destroyed unfinished, for instance
// because an interrupt prevented its owner from receiving it, its pages are freed.
struct PendingHandle {
  PendingPtr pending;
  std::weak_ptr<Ledger> ledger;

  PendingHandle(PendingPtr made, const std::shared_ptr<Ledger>& owner)
      : pending(std::move(made)), ledger(owner) {}
  ~PendingHandle() {
    const Mutation mutation;
    if (const auto owner = ledger.lock()) owner->finish(pending, std::nullopt, true);
    pending.reset();
  }
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
  ~ReleaseBatch() {
    const Mutation mutation;
    if (const auto owner = ledger.lock())
      for (Release& release : releases) owner->release(std::move(release.entry), std::move(release.streams));
    releases.clear();
  }
  ReleaseBatch(const ReleaseBatch&) = delete;
  ReleaseBatch& operator=(const ReleaseBatch&) = delete;

  std::vector<std::int64_t> streams() const {
    std::unordered_set<std::int64_t> streams;
    for (const Release& release : releases) streams.insert(release.streams.begin(), release.streams.end());
    return {streams.begin(), streams.end()};
  }

  // `fences` has one fence per stream, behind the reads of every release.
  void finish(const std::vector<py::tuple>& fences) {
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
};

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

// A ledger, with the Python objects that its leases need.
class LedgerHandle {
 public:
  // `policy` is empty for a policy that is written in Python.
  LedgerHandle(const std::string& policy, std::shared_ptr<Tier> device,
               const std::optional<std::shared_ptr<Tier>>& host, py::type lease_type, py::object device_tier, py::object host_tier)
      : ledger_(std::make_shared<Ledger>(policy_maker(policy), std::move(device), host.value_or(nullptr))),
        is_external_(policy.empty()),
        lease_type_(std::move(lease_type)),
        device_tier_(std::move(device_tier)),
        host_tier_(std::move(host_tier)) {}
  ~LedgerHandle() {
    const Mutation mutation;
    ledger_.reset();
  }
  LedgerHandle(const LedgerHandle&) = delete;
  LedgerHandle& operator=(const LedgerHandle&) = delete;

  Ledger& open() const {
    if (ledger_->is_closed()) throw std::runtime_error("the cache was closed");
    return *ledger_;
  }
  Ledger& any() const { return *ledger_; }
  const std::shared_ptr<Ledger>& shared() const { return ledger_; }

  // Returns a lease or None. Returns NotImplemented if `key` is not 32 bytes, if `num_rows` is neither None
  // nor a small int, or if released leases wait for a batch: Python then checks, drains and asks again.
  py::object get(py::handle key, py::handle num_rows) const {
    const Mutation mutation;
    Ledger& ledger = open();
    std::int64_t rows = -1;
    if (!is_key(key) || !read_num_rows(num_rows, rows) || is_due())
      return py::reinterpret_borrow<py::object>(Py_NotImplemented);
    EntryPtr entry = ledger.pin(key_of(key), rows);
    return entry == nullptr ? py::none() : make(std::move(entry));
  }

  // Whether Python must unpin released leases, or call policies that are written in Python.
  bool is_due() const {
    if (any().releases().size() >= kReleasesPerBatch) return true;
    if (!is_external_) return false;
    std::size_t events = external_policy(open(), "device").num_events();
    if (any().host() != nullptr) events += external_policy(open(), "host").num_events();
    return events >= kEventsPerBatch;
  }

  // `get` of many checked keys in one step; `num_rows` has one number per key.
  py::list get_many(const py::list& keys, const std::vector<std::int64_t>& num_rows) const {
    const std::shared_ptr<LeaseSet> leases = pin_all(keys, num_rows);
    const Mutation mutation;
    py::list made;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      EntryPtr entry = leases->take_entry(i);
      made.append(entry == nullptr ? py::none() : make(std::move(entry)));
    }
    return made;
  }

  std::shared_ptr<LeaseSet> pin_all(const py::list& keys, const std::vector<std::int64_t>& num_rows) const {
    const Mutation mutation;
    Ledger& ledger = open();
    std::vector<EntryPtr> entries(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const py::handle key = PyList_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
      if (!key.is_none()) entries[i] = ledger.pin(key_of(key), num_rows[i]);
    }
    return std::make_shared<LeaseSet>(ledger_, std::move(entries));
  }

  // Looks up the items of a plan that have a key.
  std::shared_ptr<LeaseSet> pin_plan(const StepPlan& plan) const {
    const Mutation mutation;
    Ledger& ledger = open();
    std::vector<EntryPtr> entries(plan.items().size());
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const PlannedItem& item = plan.items()[i];
      if (item.has_key) entries[i] = ledger.pin(item.key, item.num_rows);
    }
    return std::make_shared<LeaseSet>(ledger_, std::move(entries));
  }

  // The items of a plan that have a key and no entry. No hit and no miss is counted.
  std::vector<std::int64_t> find_missing(const StepPlan& plan) const {
    const Ledger& ledger = open();
    std::vector<std::int64_t> missing;
    for (std::size_t i = 0; i < plan.items().size(); ++i)
      if (plan.items()[i].has_key && !ledger.contains(plan.items()[i].key))
        missing.push_back(static_cast<std::int64_t>(i));
    return missing;
  }

  // Returns a lease of its own on an entry of a set, or None for a miss.
  py::object lease_one(const LeaseSet& leases, std::size_t position) const {
    const EntryPtr& entry = leases.entries().at(position);
    if (entry == nullptr) return py::none();
    ledger_->pin_again(*entry);
    return make(entry);
  }

  // Returns None, or a handle on the pending write that `begin` returned.
  template <typename Begin>
  std::shared_ptr<PendingHandle> begin(Begin begin) const {
    const Mutation mutation;
    PendingPtr pending = begin(open());
    return pending == nullptr ? nullptr : std::make_shared<PendingHandle>(std::move(pending), ledger_);
  }

  py::object make(EntryPtr entry) const {
    const py::object& tier = entry->tier == ledger_->host() ? host_tier_ : device_tier_;
    return make_lease(lease_type_, std::move(entry), ledger_, tier);
  }

 private:
  static MakePolicy policy_maker(const std::string& policy) {
    return [policy](std::int64_t capacity_pages) -> std::unique_ptr<Policy> {
      if (policy.empty()) return std::make_unique<ExternalPolicy>();
      return make_policy(policy, capacity_pages);
    };
  }
  static bool read_num_rows(py::handle value, std::int64_t& rows) {
    if (value.is_none()) return true;
    if (!PyLong_CheckExact(value.ptr())) return false;
    int overflow = 0;
    rows = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    return overflow == 0 && rows >= 0;
  }

  std::shared_ptr<Ledger> ledger_;
  bool is_external_;  // the policy is written in Python
  py::type lease_type_;
  py::object device_tier_;
  py::object host_tier_;
};

// An event as (name, key, pages, cost, hits).
py::list from_events(const std::vector<PolicyEvent>& events) {
  static constexpr const char* kNames[] = {"insert", "touch", "remove", "evict"};
  py::list list;
  for (const PolicyEvent& event : events)
    list.append(py::make_tuple(kNames[static_cast<int>(event.kind)], from_key(event.key), event.pages,
                               event.cost, event.hits));
  return list;
}

// The use of one tier, as `vitcache.CacheStats` counts it.
struct TierUse {
  std::int64_t hits, hit_bytes;
  double saved_ms;
  std::int64_t leased_pages, used_bytes, capacity_bytes;

  static TierUse of(const Tier& tier) {
    const std::int64_t num_pages = tier.layout().num_pages;
    return {tier.hits.hits,
            tier.hits.rows * tier.layout().row_bytes,
            tier.hits.saved_ms,
            tier.leased_pages,
            (num_pages - tier.num_free()) * tier.page_bytes(),
            num_pages * tier.page_bytes()};
  }
};

// A snapshot of all counts, in one step.
std::pair<py::dict, std::vector<TierUse>> stats_of(Ledger& ledger) {
  const Counts& counts = ledger.counts();
  py::dict values;
  values["misses"] = counts.misses;
  values["insertions"] = counts.insertions;
  values["evictions"] = counts.evictions;
  values["demotions"] = counts.demotions;
  values["writebacks"] = counts.writebacks;
  values["promotions"] = counts.promotions;
  values["rejections"] = counts.rejections;
  values["corruptions"] = counts.corruptions;
  values["entries"] = ledger.size();
  std::vector<TierUse> tiers{TierUse::of(ledger.device())};
  if (ledger.host() != nullptr) tiers.push_back(TierUse::of(*ledger.host()));
  return {std::move(values), std::move(tiers)};
}

void bind_pages(py::module_& module) {
  py::class_<TierUse>(module, "TierUse")
      .def_readonly("hits", &TierUse::hits)
      .def_readonly("hit_bytes", &TierUse::hit_bytes)
      .def_readonly("saved_ms", &TierUse::saved_ms)
      .def_readonly("leased_pages", &TierUse::leased_pages)
      .def_readonly("used_bytes", &TierUse::used_bytes)
      .def_readonly("capacity_bytes", &TierUse::capacity_bytes);
  py::class_<Tier, std::shared_ptr<Tier>>(module, "Tier")
      .def(py::init([](const std::string& name, std::int64_t num_pages, std::int64_t page_rows,
                       std::int64_t row_width, std::int64_t row_bytes, std::uintptr_t address, int kind,
                       bool on_cuda, std::int32_t device_id, const py::object& memory) {
             return std::make_shared<Tier>(TierLayout{name, name == "host", num_pages, page_rows, row_width,
                                                          row_bytes, address, kind, on_cuda, device_id},
                                               make_token(memory));
           }),
           py::arg("name"), py::arg("num_pages"), py::arg("page_rows"), py::arg("row_width"),
           py::arg("row_bytes"), py::arg("address"), py::arg("kind"), py::arg("on_cuda"),
           py::arg("device_id"), py::arg("memory"))
      .def_property_readonly("num_pages", [](const Tier& tier) { return tier.layout().num_pages; })
      .def_property_readonly("num_free", &Tier::num_free)
      .def_property_readonly("num_available", &Tier::num_available)
      .def_readonly("leased_pages", &Tier::leased_pages)
      .def_readonly("pending_pages", &Tier::pending_pages)
      .def_property_readonly("page_bytes", &Tier::page_bytes)
      .def("pages_for", &Tier::pages_for, py::arg("num_rows"))
      .def(
          "allocate",
          [](Tier& tier, std::int64_t count) {
            const Mutation mutation;
            FenceSet fences;
            const Pages pages = tier.allocate(count, fences);
            return py::make_tuple(py::tuple(py::cast(pages)), to_list(fences));
          },
          py::arg("count"))
      .def(
          "free",
          [](Tier& tier, const Pages& pages, const std::vector<py::tuple>& fences) {
            const Mutation mutation;
            FenceSet native;
            for (const py::tuple& fence : fences) native.add(to_fence(fence));
            tier.free(pages, native);
          },
          py::arg("pages"), py::arg("fences"));
  py::class_<Entry, EntryPtr>(module, "Entry")
      .def_property_readonly("key", [](const Entry& entry) { return from_key(entry.key); })
      .def_readonly("num_rows", &Entry::num_rows)
      .def_readonly("num_pages", &Entry::num_pages)
      .def_property_readonly("pages",
                             [](const Entry& entry) { return py::tuple(py::cast(entry.page_numbers())); })
      .def_property_readonly("tier", [](const Entry& entry) { return entry.tier->layout().name; })
      .def_property_readonly("memory", [](const Entry& entry) { return object_of(entry.memory); })
      .def_property_readonly("written", [](const Entry& entry) { return from_fence(entry.written); })
      .def_property_readonly("fences", [](const Entry& entry) { return to_list(entry.fences()); })
      .def_property_readonly("checksum", [](const Entry& entry) { return object_of(entry.checksum); })
      .def_readonly("cost", &Entry::cost)
      .def_readonly("leases", &Entry::leases)
      .def_readonly("hits", &Entry::hits);
}

void bind_pending(py::module_& module) {
  py::class_<Demotion, DemotionPtr>(module, "Demotion")
      .def_property_readonly("pages",
                             [](const Demotion& demotion) { return py::tuple(py::cast(demotion.pages)); })
      .def_property_readonly("entry", [](const Demotion& demotion) { return demotion.entry; })
      .def_property_readonly("memory",
                             [](const Demotion& demotion) { return object_of(demotion.tier->memory()); })
      .def(
          "set_checksum",
          [](Demotion& demotion, const py::object& checksum) { demotion.checksum = make_token(checksum); },
          py::arg("checksum"));
  py::class_<PendingHandle, std::shared_ptr<PendingHandle>>(module, "Pending")
      .def_property_readonly("key", [](const PendingHandle& handle) { return from_key(handle.pending->key); })
      .def_property_readonly("num_rows", [](const PendingHandle& handle) { return handle.pending->num_rows; })
      .def_property_readonly("epoch", [](const PendingHandle& handle) { return handle.pending->epoch; })
      .def_property_readonly("is_promotion",
                             [](const PendingHandle& handle) { return handle.pending->source != nullptr; })
      .def_property_readonly("memory",
                             [](const PendingHandle& handle) { return object_of(handle.pending->memory); })
      .def_property_readonly("tier", [](const PendingHandle& handle) { return handle.pending->tier; })
      .def_property_readonly(
          "pages", [](const PendingHandle& handle) { return py::tuple(py::cast(handle.pending->pages)); })
      .def_property_readonly("paged_rows",
                             [](const PendingHandle& handle) {
                               const Pending& pending = *handle.pending;
                               return pending.tier->describe(pending.pages, pending.num_rows);
                             })
      .def_property_readonly("demotions", [](const PendingHandle& handle) { return handle.pending->demotions; })
      .def_property_readonly("fences",
                             [](const PendingHandle& handle) { return to_list(handle.pending->fences); })
      .def_property_readonly("copied",
                             [](const PendingHandle& handle) -> py::object {
                               const auto& copied = handle.pending->copied;
                               return copied ? py::object(from_fence(*copied)) : py::none();
                             })
      .def(
          "set_copied",
          [](PendingHandle& handle, const py::tuple& fence) {
            const Mutation mutation;
            handle.pending->set_copied(to_fence(fence));
          },
          py::arg("fence"));
  py::class_<ReleaseBatch, std::shared_ptr<ReleaseBatch>>(module, "ReleaseBatch")
      .def("__len__", [](const ReleaseBatch& batch) { return batch.releases.size(); })
      .def("streams", &ReleaseBatch::streams)
      .def("finish", &ReleaseBatch::finish, py::arg("fences"));
}

void bind_lease_set(py::module_& module) {
  py::class_<LeaseSet, std::shared_ptr<LeaseSet>>(module, "LeaseSet")
      .def("__len__", [](const LeaseSet& leases) { return leases.entries().size(); })
      .def_property_readonly("num_hits", &LeaseSet::num_hits)
      .def("add_sources", &LeaseSet::add_sources, py::arg("placement"), py::arg("destination"))
      .def("misses", &LeaseSet::misses)
      .def("host_hits", &LeaseSet::host_hits)
      .def("take", &LeaseSet::take, py::arg("other"))
      .def(
          "entry",
          [](const LeaseSet& leases, std::size_t position) { return leases.entries().at(position); },
          py::arg("position"))
      .def(
          "use",
          [](LeaseSet& leases, std::int64_t stream, bool has_waited) {
            return to_list(leases.use(stream, has_waited));
          },
          py::arg("stream"), py::arg("has_waited"))
      .def("release_one", &LeaseSet::release_one, py::arg("position"))
      .def("release", &LeaseSet::release);
}

void bind_ledger(py::module_& module) {
  py::class_<LedgerHandle> ledger(module, "Ledger");
  ledger
      .def(py::init<const std::string&, std::shared_ptr<Tier>, std::optional<std::shared_ptr<Tier>>, py::type,
                    py::object, py::object>(),
           py::arg("policy"), py::arg("device"), py::arg("host"), py::arg("lease_type"),
           py::arg("device_tier"), py::arg("host_tier"))
      .def("get", &LedgerHandle::get, py::arg("key"), py::arg("num_rows"))
      .def("get_many", &LedgerHandle::get_many, py::arg("keys"), py::arg("num_rows"))
      .def("pin_all", &LedgerHandle::pin_all, py::arg("keys"), py::arg("num_rows"))
      .def("pin_plan", &LedgerHandle::pin_plan, py::arg("plan"))
      .def("find_missing", &LedgerHandle::find_missing, py::arg("plan"))
      .def("lease_one", &LedgerHandle::lease_one, py::arg("leases"), py::arg("position"))
      .def(
          "begin_write",
          [](const LedgerHandle& self, py::handle key, std::int64_t num_rows, double cost,
             std::optional<std::int64_t> epoch) {
            return self.begin([&](Ledger& ledger) {
              return ledger.begin_write(key_of(key), num_rows, cost, epoch.value_or(ledger.epoch()));
            });
          },
          py::arg("key"), py::arg("num_rows"), py::arg("cost"), py::arg("epoch"))
      .def(
          "begin_promotion",
          [](const LedgerHandle& self, const EntryPtr& source) {
            return self.begin([&](Ledger& ledger) { return ledger.begin_promotion(source); });
          },
          py::arg("source"))
      .def(
          "begin_early_copies",
          [](const LedgerHandle& self, const std::vector<std::int64_t>& num_rows) {
            return self.begin([&](Ledger& ledger) { return ledger.begin_early_copies(num_rows); });
          },
          py::arg("num_rows"))
      .def(
          "finish",
          [](const LedgerHandle& self, const PendingHandle& handle, const py::object& fence, bool failed) {
            const Mutation mutation;
            return self.any().finish(handle.pending, to_optional_fence(fence), failed);
          },
          py::arg("pending"), py::arg("fence"), py::arg("failed"))
      .def("take_releases",
           [](const LedgerHandle& self) {
             return std::make_shared<ReleaseBatch>(std::exchange(self.any().releases(), {}), self.shared());
           })
      .def_property_readonly("is_due", &LedgerHandle::is_due)
      .def_property_readonly("num_releases",
                             [](const LedgerHandle& self) { return self.any().releases().size(); })
      .def(
          "report_corrupt",
          [](const LedgerHandle& self, const EntryPtr& entry) {
            const Mutation mutation;
            self.open().report_corrupt(entry);
          },
          py::arg("entry"))
      .def(
          "lease_entry",
          [](const LedgerHandle& self, py::handle lease) -> EntryPtr {
            LeaseObject* const object = as_lease(lease.ptr());
            if (object == nullptr || object->ledger.lock() != self.shared()) return nullptr;
            if (object->entry == nullptr) refuse_released(*object);
            return object->entry;
          },
          py::arg("lease"))
      .def(
          "contains",
          [](const LedgerHandle& self, py::handle key) { return self.open().contains(key_of(key)); },
          py::arg("key"))
      .def("__len__", [](const LedgerHandle& self) { return self.open().size(); })
      .def_property_readonly("epoch", [](const LedgerHandle& self) { return self.open().epoch(); })
      .def_property_readonly("last_epoch", [](const LedgerHandle& self) { return self.any().epoch(); })
      .def_property_readonly("num_available",
                             [](const LedgerHandle& self) { return self.any().device().num_available(); })
      .def("advance",
           [](const LedgerHandle& self) {
             const Mutation mutation;
             self.open().advance();
           })
      .def("clear",
           [](const LedgerHandle& self) {
             const Mutation mutation;
             self.open().clear();
           })
      .def("close",
           [](const LedgerHandle& self) {
             const Mutation mutation;
             self.any().close();
           })
      .def("check_open", [](const LedgerHandle& self) { self.open(); })
      .def("stats", [](const LedgerHandle& self) { return stats_of(self.open()); })
      .def("find_violations", [](const LedgerHandle& self) { return self.open().find_violations(); });
  // Claims outlive `close`: their owners release them later.
  ledger
      .def(
          "claim",
          [](const LedgerHandle& self, std::int64_t epoch, py::handle key, const py::object& owner) {
            return object_of(self.any().claims().claim(epoch, key_of(key), make_token(owner)));
          },
          py::arg("epoch"), py::arg("key"), py::arg("owner"))
      .def(
          "owns_claim",
          [](const LedgerHandle& self, std::int64_t epoch, py::handle key, const py::object& owner) {
            return self.any().claims().is_owner(epoch, key_of(key), make_token(owner));
          },
          py::arg("epoch"), py::arg("key"), py::arg("owner"))
      .def(
          "release_claim",
          [](const LedgerHandle& self, std::int64_t epoch, py::handle key, const py::object& owner) {
            const Mutation mutation;
            self.any().claims().release(epoch, key_of(key), make_token(owner));
          },
          py::arg("epoch"), py::arg("key"), py::arg("owner"))
      .def_property_readonly("num_claims",
                             [](const LedgerHandle& self) { return self.any().claims().size(); });
  // A policy that is written in Python: vitcache.cache.python_policy calls it between two steps of the ledger.
  ledger
      .def(
          "take_policy_events",
          [](const LedgerHandle& self, const std::string& tier) {
            return from_events(external_policy(self.open(), tier).take_events());
          },
          py::arg("tier"))
      .def(
          "set_policy_order",
          [](const LedgerHandle& self, const std::string& tier, const py::list& order) {
            std::vector<std::pair<Key, bool>> keys;
            for (const py::handle item : order) {
              const auto pair = py::reinterpret_borrow<py::tuple>(item);
              keys.emplace_back(key_of(pair[0]), pair[1].cast<bool>());
            }
            external_policy(self.open(), tier).set_order(keys);
          },
          py::arg("tier"), py::arg("order"));
  // For tests.
  ledger
      .def(
          "find_entry",
          [](const LedgerHandle& self, py::handle key, const std::string& tier) -> EntryPtr {
            Ledger& books = self.open();
            const EntryPtr* found = books.index().find(key_of(key));
            if (found != nullptr && (*found)->tier->layout().name == tier) return *found;
            const EntryPtr* copy = books.index().find_host_copy(key_of(key));
            return copy != nullptr && tier == "host" ? *copy : nullptr;
          },
          py::arg("key"), py::arg("tier"))
      .def(
          "eviction_order",
          [](const LedgerHandle& self, const std::string& tier) {
            Ledger& books = self.open();
            return from_keys(books.index().keys_of_policy(tier_of(books, tier)));
          },
          py::arg("tier"))
      .def("num_stale_indexes", [](const LedgerHandle& self) { return self.open().num_stale_indexes(); });
}

}  // namespace

void bind_cache(py::module_& module) {
  bind_lease(module);
  bind_pages(module);
  bind_pending(module);
  bind_lease_set(module);
  bind_ledger(module);
}

}  // namespace vitcache
