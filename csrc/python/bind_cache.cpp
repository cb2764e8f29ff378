#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/ledger.h"
#include "placement/placement.h"
#include "python/bindings.h"
#include "python/fences.h"
#include "python/keys.h"
#include "python/lease.h"
#include "python/lease_set.h"
#include "python/ledger_handle.h"
#include "python/token.h"

namespace py = pybind11;

namespace vitcache {
namespace {

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
      .def_property_readonly("name", [](const Tier& tier) { return tier.layout().name; })
      .def_property_readonly("num_pages", [](const Tier& tier) { return tier.layout().num_pages; })
      .def_property_readonly("num_free", &Tier::num_free)
      .def_property_readonly("free_pages",  // in any order; for tests
                             [](const Tier& tier) { return py::tuple(py::cast(tier.free_pages())); })
      .def_property_readonly("num_available", &Tier::num_available)
      .def_readonly("leased_pages", &Tier::leased_pages)
      .def_readonly("pending_pages", &Tier::pending_pages)
      .def_property_readonly("page_bytes", &Tier::page_bytes)
      .def(
          "pages_for",
          [](const Tier& tier, std::int64_t num_rows, std::optional<std::int64_t> row_width) {
            return tier.pages_for(num_rows, row_width.value_or(tier.layout().row_width));
          },
          py::arg("num_rows"), py::arg("row_width") = py::none())
      .def(
          "allocate",
          [](Tier& tier, std::int64_t count) {
            if (count < 0 || count > tier.num_free())
              throw std::invalid_argument("cannot allocate " + std::to_string(count) + " pages, " +
                                          std::to_string(tier.num_free()) + " are free");
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
      .def_property_readonly("row_width", &Entry::row_width)
      .def_readonly("num_pages", &Entry::num_pages)
      .def_property_readonly("pages",
                             [](const Entry& entry) { return py::tuple(py::cast(entry.page_numbers())); })
      .def_property_readonly("tier", [](const Entry& entry) { return entry.tier->layout().name; })
      .def_property_readonly("memory", [](const Entry& entry) { return object_of(entry.memory); })
      .def_property_readonly("written", [](const Entry& entry) { return from_fence(entry.written); })
      .def_property_readonly("fences", [](const Entry& entry) { return to_list(entry.fences()); })
      .def_property_readonly("checksum", [](const Entry& entry) { return object_of(entry.checksum); })
      .def_readonly("cost", &Entry::cost)
      .def_property_readonly("tenant", [](const Entry& entry) { return from_key(entry.tenant); })
      .def_readonly("is_offered", &Entry::is_offered)
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
      .def_property_readonly("row_width",
                             [](const PendingHandle& handle) { return handle.pending->row_width; })
      .def_property_readonly("epoch", [](const PendingHandle& handle) { return handle.pending->epoch; })
      .def_property_readonly("is_promotion",
                             [](const PendingHandle& handle) { return handle.pending->source != nullptr; })
      .def_property_readonly("is_fetch", [](const PendingHandle& handle) { return handle.pending->is_fetch; })
      // Whether `discard` or `forget` was called for the rows, so that they are not inserted.
      .def_property_readonly("is_rejected",
                             [](const PendingHandle& handle) { return handle.pending->is_rejected; })
      .def_property_readonly("tenant",
                             [](const PendingHandle& handle) { return from_key(handle.pending->tenant); })
      .def_property_readonly(
          "has_host_copy", [](const PendingHandle& handle) { return handle.pending->host_copy.has_value(); })
      .def_property_readonly("memory",
                             [](const PendingHandle& handle) { return object_of(handle.pending->memory); })
      .def_property_readonly("tier", [](const PendingHandle& handle) { return handle.pending->tier; })
      .def_property_readonly(
          "pages", [](const PendingHandle& handle) { return py::tuple(py::cast(handle.pending->pages)); })
      .def_property_readonly("paged_rows",
                             [](const PendingHandle& handle) {
                               const Pending& pending = *handle.pending;
                               return pending.tier->describe(pending.pages, pending.num_rows,
                                                             pending.row_width);
                             })
      .def_property_readonly("demotions",
                             [](const PendingHandle& handle) { return handle.pending->demotions; })
      // The copies of a compaction, in order, as (page, source page, number of pages).
      .def_property_readonly("page_moves",
                             [](const PendingHandle& handle) {
                               std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> runs;
                               for (const PageMove& run : handle.pending->page_moves())
                                 runs.emplace_back(run.page, run.source_page, run.count);
                               return runs;
                             })
      .def_property_readonly("fences",
                             [](const PendingHandle& handle) { return to_list(handle.pending->fences); })
      .def_property_readonly("copied",
                             [](const PendingHandle& handle) -> py::object {
                               const auto& copied = handle.pending->copied;
                               return copied ? py::object(from_fence(*copied)) : py::none();
                             })
      // The streams that were allowed to write the pages, except the CPU's.
      .def_property_readonly("streams", [](const PendingHandle& handle) { return handle.streams.list(); })
      .def_property_readonly("is_used", [](const PendingHandle& handle) { return handle.is_used; })
      .def(
          "use",
          [](PendingHandle& handle, std::int64_t stream) {
            handle.is_used = true;
            handle.streams.add(stream);
          },
          py::arg("stream"))
      // Call it before copies to the host tier are queued; `set_copied` and `set_host_copied` end it.
      .def(
          "begin_copies", [](PendingHandle& handle, std::int64_t stream) { handle.copy_stream = stream; },
          py::arg("stream"))
      .def(
          "set_copied",
          [](PendingHandle& handle, const py::tuple& fence) {
            const Mutation mutation;
            handle.pending->set_copied(to_fence(fence));
            handle.copy_stream.reset();
          },
          py::arg("fence"))
      // The memory, the pages and the fences of the host copy; None if the write makes none.
      .def_property_readonly("host_copy",
                             [](const PendingHandle& handle) -> py::object {
                               const auto& copy = handle.pending->host_copy;
                               if (!copy) return py::none();
                               return py::make_tuple(object_of(copy->tier->memory()),
                                                     py::tuple(py::cast(copy->pages)), to_list(copy->fences));
                             })
      .def(
          "set_host_copied",
          [](PendingHandle& handle, const py::tuple& fence) {
            const Mutation mutation;
            handle.pending->host_copy.value().copied = to_fence(fence);
            handle.copy_stream.reset();
          },
          py::arg("fence"))
      .def(
          "set_checksum",
          [](PendingHandle& handle, const py::object& checksum) {
            const Mutation mutation;
            handle.pending->checksum = make_token(checksum);
          },
          py::arg("checksum"));
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
          "entry", [](const LeaseSet& leases, std::size_t position) { return leases.entries().at(position); },
          py::arg("position"))
      .def(
          "use",
          [](LeaseSet& leases, std::int64_t stream, bool has_waited) {
            return to_list(leases.use(stream, has_waited));
          },
          py::arg("stream"), py::arg("has_waited"))
      .def("forget_fences", &LeaseSet::forget_fences, py::arg("events"))
      .def("release_one", &LeaseSet::release_one, py::arg("position"))
      .def("release", &LeaseSet::release);
}

}  // namespace

void bind_cache(py::module_& module) {
  bind_lease(module);
  bind_pages(module);
  bind_pending(module);
  bind_lease_set(module);
}

}  // namespace vitcache
