#include "python/lease.h"

#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "python/fences.h"
#include "python/token.h"

namespace py = pybind11;

namespace vitcache {

bool ReadStreams::contains(std::int64_t stream) const {
  return std::find(streams_.begin(), streams_.end(), stream) != streams_.end();
}

void ReadStreams::add(std::int64_t stream) {
  if (stream != kCpuStream && !contains(stream)) streams_.push_back(stream);
}

namespace {

PyTypeObject* lease_base = nullptr;

LeaseObject& lease_of(PyObject* self) { return *reinterpret_cast<LeaseObject*>(self); }

void release(LeaseObject& lease) {
  if (lease.entry == nullptr) return;
  const Mutation mutation;
  EntryPtr entry = std::move(lease.entry);
  lease.entry = nullptr;
  // After the cache was destroyed, the entry owns its memory.
  if (const auto ledger = lease.ledger.lock()) ledger->release(std::move(entry), lease.streams.take());
}

void deallocate(PyObject* self) {
  LeaseObject& lease = lease_of(self);
  release(lease);
  PyTypeObject* const type = Py_TYPE(self);
  Py_XDECREF(lease.tier);
  lease.entry.~EntryPtr();
  lease.ledger.~weak_ptr();
  lease.streams.~ReadStreams();
  type->tp_free(self);
  Py_DECREF(type);
}

// Returns false, with RuntimeError set, if the lease was released.
bool check_unreleased(const LeaseObject& lease) {
  if (lease.entry != nullptr) return true;
  PyErr_Format(PyExc_RuntimeError, "this lease of %lld rows was released", lease.num_rows);
  return false;
}

PyObject* release_method(PyObject* self, PyObject*) {
  release(lease_of(self));
  Py_RETURN_NONE;
}

PyObject* check_method(PyObject* self, PyObject*) {
  if (!check_unreleased(lease_of(self))) return nullptr;
  Py_RETURN_NONE;
}

PyObject* enter_method(PyObject* self, PyObject*) {
  if (!check_unreleased(lease_of(self))) return nullptr;
  return Py_NewRef(self);
}

PyObject* exit_method(PyObject* self, PyObject* const*, Py_ssize_t) {
  release(lease_of(self));
  Py_RETURN_NONE;
}

PyObject* get_released(PyObject* self, void*) { return PyBool_FromLong(lease_of(self).entry == nullptr); }

PyObject* get_memory(PyObject* self, void*) {
  if (!check_unreleased(lease_of(self))) return nullptr;
  return object_of(lease_of(self).entry->memory).release().ptr();
}

PyObject* get_paged_rows(PyObject* self, void*) {
  const LeaseObject& lease = lease_of(self);
  if (lease.entry == nullptr) Py_RETURN_NONE;
  try {
    return py::cast(lease.entry->rows).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyObject* get_pages(PyObject* self, void*) {
  if (!check_unreleased(lease_of(self))) return nullptr;
  const Pages& pages = lease_of(self).entry->page_numbers();
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(pages.size()));
  for (std::size_t i = 0; tuple != nullptr && i < pages.size(); ++i) {
    PyObject* page = PyLong_FromLongLong(pages[i]);
    if (page == nullptr) {
      Py_DECREF(tuple);
      return nullptr;
    }
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), page);
  }
  return tuple;
}

PyMethodDef methods[] = {
    {"release", release_method, METH_NOARGS,
     "release(self) -> None\n\nUnpin the pages. A second call does nothing."},
    {"check_unreleased", check_method, METH_NOARGS,
     "check_unreleased(self) -> None\n\nRaise RuntimeError if the lease was released."},
    {"__enter__", enter_method, METH_NOARGS, "__enter__(self) -> typing_extensions.Self\n\n"},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(exit_method)), METH_FASTCALL,
     "__exit__(self, *_: object) -> None\n\n"},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef members[] = {
    {"num_rows", T_LONGLONG, offsetof(LeaseObject, num_rows), READONLY, "Number of rows."},
    {"row_width", T_LONGLONG, offsetof(LeaseObject, row_width), READONLY, "Elements of a row."},
    {"hits", T_LONGLONG, offsetof(LeaseObject, hits), READONLY,
     "Number of hits of the entry since it was inserted into its tier, including the hit of this lease."},
    {"_tier", T_OBJECT_EX, offsetof(LeaseObject, tier), READONLY,
     "The properties that the leases of one tier share."},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef properties[] = {
    {"released", get_released, nullptr, "Whether the lease was released.", nullptr},
    {"pages", get_pages, nullptr,
     "Page numbers in row order: row r is ``pool[pages[r // page_rows] * page_rows + r % page_rows]``.\n\n"
     "Raises RuntimeError if the lease was released.",
     nullptr},
    {"paged_rows", get_paged_rows, nullptr,
     "The native description of the rows, for placements; None if the lease was released.", nullptr},
    {"_memory", get_memory, nullptr, "The owner of the pages' memory. Raises RuntimeError if released.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                       {Py_tp_methods, methods},
                       {Py_tp_members, members},
                       {Py_tp_getset, properties},
                       {0, nullptr}};

PyType_Spec specification = {"vitcache._native.LeaseBase", sizeof(LeaseObject), 0,
                             // Only `make_lease` makes instances, also those of a subclass.
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             slots};

}  // namespace

py::object make_lease(py::handle type, EntryPtr entry, const std::shared_ptr<Ledger>& ledger,
                      py::handle tier) {
  auto* const made = reinterpret_cast<PyTypeObject*>(type.ptr());
  PyObject* const self = made->tp_alloc(made, 0);
  if (self == nullptr) {
    ledger->unpin(*entry);
    throw py::error_already_set();
  }
  LeaseObject& lease = lease_of(self);
  lease.num_rows = entry->num_rows;
  lease.row_width = entry->row_width();
  lease.hits = entry->hits;
  lease.tier = tier.inc_ref().ptr();
  new (&lease.entry) EntryPtr(std::move(entry));
  new (&lease.ledger) std::weak_ptr<Ledger>(ledger);
  new (&lease.streams) ReadStreams();
  return py::reinterpret_steal<py::object>(self);
}

LeaseObject* as_lease(PyObject* object) {
  return PyObject_TypeCheck(object, lease_base) ? &lease_of(object) : nullptr;
}

void refuse_released(const LeaseObject& lease) {
  throw std::runtime_error("this lease of " + std::to_string(lease.num_rows) + " rows was released");
}

namespace {

// The position of the first lease among the items of a list; their number if there is none.
std::int64_t find_lease(const py::list& items) {
  const auto count = static_cast<std::int64_t>(items.size());
  std::int64_t position = 0;
  while (position < count && as_lease(PyList_GET_ITEM(items.ptr(), position)) == nullptr) ++position;
  return position;
}

// Drops the fences of entries whose write is complete: `events` are the events of these fences. Later reads
// of these entries need no fence.
void forget_fences(const py::list& items, const py::set& events) {
  const Mutation mutation;
  for (const py::handle item : items) {
    LeaseObject* const lease = as_lease(item.ptr());
    if (lease != nullptr && lease->entry != nullptr) forget_passed(lease->entry->written, events);
  }
}

// Marks the leases among items [first, end) as read on `stream`, where `end` is the first lease of another
// tier object, hence perhaps of another cache. If the stream has to wait for fences before it may read, then
// nothing is marked unless `has_waited`, and the fences are returned.
std::pair<std::int64_t, py::list> use_leases(const py::object& items, std::int64_t first, std::int64_t stream,
                                             bool has_waited) {
  const auto list = py::reinterpret_steal<py::object>(PySequence_Fast(items.ptr(), "items must be a list"));
  if (!list) throw py::error_already_set();
  PyObject** const objects = PySequence_Fast_ITEMS(list.ptr());
  const std::int64_t count = PySequence_Fast_GET_SIZE(list.ptr());
  FenceSet fences;
  std::vector<LeaseObject*> used;
  std::int64_t end = first;
  const PyObject* cache_timeline = nullptr;
  for (; end < count; ++end) {
    LeaseObject* const lease = as_lease(objects[end]);
    if (lease == nullptr) continue;
    // The timeline is the first field of the tier's named tuple.
    const PyObject* timeline = PyTuple_GET_ITEM(lease->tier, 0);
    if (cache_timeline == nullptr) cache_timeline = timeline;
    if (timeline != cache_timeline) break;
    if (lease->entry == nullptr) refuse_released(*lease);
    if (lease->streams.contains(stream)) continue;
    if (lease->entry->written.stream != stream) fences.add(lease->entry->written);
    used.push_back(lease);
  }
  if (fences.empty() || has_waited)
    for (LeaseObject* lease : used) lease->streams.add(stream);
  return {end, has_waited ? py::list() : to_list(fences)};
}

}  // namespace

void bind_lease(py::module_& module) {
  lease_base = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&specification));
  if (lease_base == nullptr) throw py::error_already_set();
  module.attr("LeaseBase") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(lease_base));
  module.def("find_lease", &find_lease, py::arg("items"));
  module.def("forget_fences", &forget_fences, py::arg("items"), py::arg("events"));
  module.def("use_leases", &use_leases, py::arg("items"), py::arg("first"), py::arg("stream"),
             py::arg("has_waited"));
}

}  // namespace vitcache
