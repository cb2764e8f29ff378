#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/external_policy.h"
#include "cache/ledger.h"
#include "python/bindings.h"
#include "python/claim.h"
#include "python/fences.h"
#include "python/keys.h"
#include "python/lease.h"
#include "python/ledger_handle.h"
#include "python/token.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// An event as (name, key, pages, cost, hits).
py::list from_events(const std::vector<PolicyEvent>& events) {
  static constexpr const char* kNames[] = {"insert", "touch", "remove", "evict"};
  py::list list;
  for (const PolicyEvent& event : events)
    list.append(py::make_tuple(kNames[static_cast<int>(event.kind)], from_key(event.key), event.pages,
                               event.cost, event.hits));
  return list;
}

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
  std::vector<TierUse> tiers{ledger.device().use()};
  if (ledger.host() != nullptr) tiers.push_back(ledger.host()->use());
  return {std::move(values), std::move(tiers)};
}

// `tier` is "device", "host" or "both".
WriteTo target_of(Ledger& ledger, const std::string& tier) {
  if (tier == "device") return WriteTo::kDevice;
  if (ledger.host() == nullptr) throw std::invalid_argument("the cache has no host tier");
  return tier == "host" ? WriteTo::kHost : WriteTo::kBoth;
}

using LedgerClass = py::class_<LedgerHandle>;

void bind_look_ups(LedgerClass& ledger) {
  ledger.def("get", &LedgerHandle::get, py::arg("key"), py::arg("num_rows"))
      .def("get_many", &LedgerHandle::get_many, py::arg("keys"), py::arg("num_rows"),
           py::arg("row_widths") = py::none())
      .def("pin_all", &LedgerHandle::pin_all, py::arg("keys"), py::arg("num_rows"),
           py::arg("row_widths") = py::none())
      .def("pin_plan", &LedgerHandle::pin_plan, py::arg("plan"), py::arg("row_widths") = py::none())
      .def("lease_one", &LedgerHandle::lease_one, py::arg("leases"), py::arg("position"));
}

void bind_writes(LedgerClass& ledger) {
  ledger
      .def(
          "begin_write",
          [](const LedgerHandle& self, py::handle key, std::int64_t num_rows, std::int64_t row_width,
             double cost, std::optional<std::int64_t> epoch, const std::string& tier, const py::bytes& tenant,
             bool offer) {
            return self.begin([&](Ledger& ledger) {
              return ledger.begin_write(read_key(key), num_rows, row_width, cost,
                                        epoch.value_or(ledger.epoch()), target_of(ledger, tier),
                                        read_digest(tenant), offer);
            });
          },
          py::arg("key"), py::arg("num_rows"), py::arg("row_width"), py::arg("cost"), py::arg("epoch"),
          py::arg("tier") = "device", py::arg("tenant") = py::bytes(), py::arg("offer") = false)
      // None also once the cache is closed.
      .def(
          "begin_fetch",
          [](const LedgerHandle& self, py::handle key, std::int64_t num_rows, std::int64_t row_width,
             double cost, std::int64_t epoch, const py::bytes& tenant,
             bool may_evict) -> std::shared_ptr<PendingHandle> {
            if (self.any().is_closed()) return nullptr;
            return self.begin([&](Ledger& ledger) {
              return ledger.begin_fetch(read_key(key), num_rows, row_width, cost, epoch, read_digest(tenant),
                                        may_evict);
            });
          },
          py::arg("key"), py::arg("num_rows"), py::arg("row_width"), py::arg("cost"), py::arg("epoch"),
          py::arg("tenant"), py::arg("may_evict") = true)
      .def(
          "begin_promotion",
          [](const LedgerHandle& self, const EntryPtr& source, bool contiguous) {
            return self.begin([&](Ledger& ledger) { return ledger.begin_promotion(source, contiguous); });
          },
          py::arg("source"), py::arg("contiguous") = false)
      .def(
          "begin_early_copies",
          [](const LedgerHandle& self, const std::vector<std::int64_t>& num_pages) {
            return self.begin([&](Ledger& ledger) { return ledger.begin_early_copies(num_pages); });
          },
          py::arg("num_pages"))
      .def(
          "finish",
          [](const LedgerHandle& self, const PendingHandle& handle, const py::object& fence, bool failed) {
            const Mutation mutation;
            return self.any().finish(handle.pending, to_optional_fence(fence), failed);
          },
          py::arg("pending"), py::arg("fence"), py::arg("failed"))
      .def("finish_leased", &LedgerHandle::finish_leased, py::arg("pending"), py::arg("fence"));
}

// The calls of a caller that chooses itself which entries leave a tier.
void bind_orders(LedgerClass& ledger) {
  ledger
      .def(
          "begin_contiguous_write",
          [](const LedgerHandle& self, py::handle key, std::int64_t num_rows, std::int64_t row_width,
             double cost, std::optional<std::int64_t> epoch, const py::bytes& tenant, bool offer) {
            return self.begin([&](Ledger& ledger) {
              return ledger.begin_contiguous_write(read_key(key), num_rows, row_width, cost,
                                                   epoch.value_or(ledger.epoch()), read_digest(tenant),
                                                   offer);
            });
          },
          py::arg("key"), py::arg("num_rows"), py::arg("row_width"), py::arg("cost"), py::arg("epoch"),
          py::arg("tenant") = py::bytes(), py::arg("offer") = false)
      .def(
          "begin_copy_to_host",
          [](const LedgerHandle& self, py::handle key) {
            return self.begin([&](Ledger& ledger) { return ledger.begin_copy_to_host(read_key(key)); });
          },
          py::arg("key"))
      .def(
          "has_host_copy",
          [](const LedgerHandle& self, py::handle key) { return self.open().has_host_copy(read_key(key)); },
          py::arg("key"))
      .def(
          "is_demotable",
          [](const LedgerHandle& self, py::handle key) { return self.open().is_demotable(read_key(key)); },
          py::arg("key"))
      .def(
          "demote_to_copy",
          [](const LedgerHandle& self, py::handle key) {
            const Mutation mutation;
            return self.open().demote_to_copy(read_key(key));
          },
          py::arg("key"))
      .def(
          "discard_from_host",
          [](const LedgerHandle& self, py::handle key) {
            const Mutation mutation;
            return self.open().discard_from_host(read_key(key));
          },
          py::arg("key"))
      .def("begin_compaction", [](const LedgerHandle& self) {
        return self.begin([](Ledger& ledger) { return ledger.begin_compaction(); });
      });
}

// The calls of the write-back to the tiers below the host tier. Other threads make them, also after `close`.
void bind_write_back(LedgerClass& ledger) {
  ledger
      .def("peek", &LedgerHandle::peek, py::arg("key"), py::arg("num_rows"), py::arg("row_width"),
           py::arg("is_on_host") = false)
      .def(
          "set_write_back",
          [](const LedgerHandle& self, std::int64_t hits) { self.any().set_write_back(hits); },
          py::arg("hits"))
      .def(
          "offer", [](const LedgerHandle& self, py::handle key) { self.open().offer(read_key(key)); },
          py::arg("key"))
      // The offers as (key, number of rows, row width, tenant, number of bytes).
      .def("take_offers",
           [](const LedgerHandle& self) {
             std::vector<std::tuple<py::bytes, std::int64_t, std::int64_t, py::bytes, std::int64_t>> taken;
             for (const Offer& offer : self.any().take_offers())
               taken.emplace_back(from_key(offer.key), offer.num_rows, offer.row_width,
                                  from_key(offer.tenant), offer.num_bytes);
             return taken;
           })
      .def(
          "retract_offer",
          [](const LedgerHandle& self, py::handle key) { self.any().retract_offer(read_key(key)); },
          py::arg("key"));
}

void bind_releases(LedgerClass& ledger) {
  ledger
      .def("take_releases",
           [](const LedgerHandle& self) {
             return std::make_shared<ReleaseBatch>(std::exchange(self.any().releases(), {}), self.shared());
           })
      // The pending writes whose owners were destroyed. One that is not finished returns to the ledger.
      .def("take_abandoned",
           [](const LedgerHandle& self) {
             std::vector<std::shared_ptr<PendingHandle>> taken;
             for (Abandoned& each : std::exchange(self.any().abandoned(), {})) {
               taken.push_back(std::make_shared<PendingHandle>(std::move(each.pending), self.shared()));
               for (const std::int64_t stream : each.streams) taken.back()->streams.add(stream);
             }
             return taken;
           })
      .def_property_readonly("num_abandoned",
                             [](const LedgerHandle& self) { return self.any().abandoned().size(); })
      .def_property_readonly("is_due", &LedgerHandle::is_due)
      .def_property_readonly("num_releases",
                             [](const LedgerHandle& self) { return self.any().releases().size(); });
}

void bind_state(LedgerClass& ledger) {
  ledger
      .def(
          "report_corrupt",
          [](const LedgerHandle& self, const EntryPtr& entry) {
            const Mutation mutation;
            return self.open().report_corrupt(entry);
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
          [](const LedgerHandle& self, py::handle key) { return self.open().contains(read_key(key)); },
          py::arg("key"))
      .def(
          "discard",
          [](const LedgerHandle& self, py::handle key) {
            const Mutation mutation;
            return self.open().discard(read_key(key));
          },
          py::arg("key"))
      .def(
          "forget",
          [](const LedgerHandle& self, py::handle key) {
            const Mutation mutation;
            return self.open().forget(read_key(key));
          },
          py::arg("key"))
      .def(
          "forget_tenant",
          [](const LedgerHandle& self, py::handle tenant) {
            const Mutation mutation;
            return self.open().forget_tenant(read_key(tenant));
          },
          py::arg("tenant"))
      // None if the ledger records no evictions.
      .def("take_evicted",
           [](const LedgerHandle& self) -> py::object {
             EvictionRecord& evicted = self.open().evicted();
             if (!evicted.is_enabled()) return py::none();
             return from_keys(evicted.take());
           })
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
}

// Claims outlive `close`: their owners release them later.
void bind_claims(LedgerClass& ledger) {
  ledger
      .def(
          "claim",
          [](const LedgerHandle& self, std::int64_t epoch, py::handle key, const std::string& call) {
            return std::make_unique<KeyClaim>(self.shared(), epoch, read_key(key), call);
          },
          py::arg("epoch"), py::arg("key"), py::arg("call"))
      .def_property_readonly("num_claims", [](const LedgerHandle& self) {
        settle_forks();
        return self.any().claims().size();
      });
}

// For policies that are written in Python: vitcache.cache.python_policy calls them between two changes.
// `take_policy_events` returns the epoch, and the events of each tier since the last call. If the caller
// knows another epoch, these are the insertions of all entries.
void bind_python_policy(LedgerClass& ledger) {
  ledger
      .def(
          "take_policy_events",
          [](const LedgerHandle& self, std::int64_t known_epoch) {
            Ledger& books = self.open();
            py::dict events;
            for (const Tier* tier :
                 {static_cast<const Tier*>(&books.device()), static_cast<const Tier*>(books.host())}) {
              if (tier == nullptr) continue;
              const std::string& name = tier->layout().name;
              std::vector<PolicyEvent> taken = external_policy(books, name).take_events();
              if (known_epoch != books.epoch()) {
                taken.clear();
                for (const Key& key : books.index().keys_of_policy(*tier)) {
                  const Entry& entry = **books.index().find(key);
                  taken.push_back({PolicyEvent::Kind::kInsert, key, entry.num_pages, entry.cost, 0});
                }
              }
              events[py::str(name)] = from_events(taken);
            }
            return py::make_tuple(books.epoch(), std::move(events));
          },
          py::arg("known_epoch"))
      .def(
          "set_policy_order",
          [](const LedgerHandle& self, std::int64_t epoch, const std::string& tier, const py::list& order) {
            if (epoch != self.open().epoch()) return;  // of an earlier epoch
            std::vector<std::pair<Key, bool>> keys;
            for (const py::handle item : order) {
              const auto pair = py::reinterpret_borrow<py::tuple>(item);
              keys.emplace_back(read_key(pair[0]), pair[1].cast<bool>());
            }
            external_policy(self.open(), tier).set_order(keys);
          },
          py::arg("epoch"), py::arg("tier"), py::arg("order"));
}

void bind_for_tests(LedgerClass& ledger) {
  ledger
      .def(
          "find_entry",
          [](const LedgerHandle& self, py::handle key, const std::string& tier) -> EntryPtr {
            Ledger& books = self.open();
            const EntryPtr* found = books.index().find(read_key(key));
            if (found != nullptr && (*found)->tier->layout().name == tier) return *found;
            const EntryPtr* copy = books.index().find_host_copy(read_key(key));
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
      .def_property_readonly("evicted",
                             [](const LedgerHandle& self) {
                               const std::list<Key>& keys = self.open().evicted().keys();
                               return from_keys({keys.begin(), keys.end()});
                             })
      .def("num_stale_indexes", [](const LedgerHandle& self) { return self.open().num_stale_indexes(); });
}

}  // namespace

void bind_ledger(py::module_& module) {
  LedgerClass ledger(module, "Ledger");
  ledger.def(py::init<const std::string&, std::shared_ptr<Tier>, std::optional<std::shared_ptr<Tier>>,
                      py::type, py::object, py::object, std::int64_t, std::string>(),
             py::arg("policy"), py::arg("device"), py::arg("host"), py::arg("lease_type"),
             py::arg("device_tier"), py::arg("host_tier"), py::arg("num_recorded") = 0,
             py::arg("memory") = "");
  bind_look_ups(ledger);
  bind_writes(ledger);
  bind_orders(ledger);
  bind_write_back(ledger);
  bind_releases(ledger);
  bind_state(ledger);
  bind_claims(ledger);
  bind_python_policy(ledger);
  bind_for_tests(ledger);
}

}  // namespace vitcache
