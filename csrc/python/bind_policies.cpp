// The native policies by key, behind the contract of `Policy` in vitcache/cache/policies/__init__.py.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "cache/cost_aware.h"
#include "cache/lru.h"
#include "cache/policy.h"
#include "cache/s3fifo.h"
#include "python/bindings.h"
#include "python/keys.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// A policy that owns its nodes. Callers name them by their keys.
//
// Thread rule: as for every policy (csrc/cache/policy.h), the owner makes one call at a time. The GIL is not
// released in a call.
class KeyedPolicy {
 public:
  explicit KeyedPolicy(std::unique_ptr<Policy> policy) : policy_(std::move(policy)) {}

  void insert(const py::bytes& bytes, std::int64_t pages, double cost) {
    const Key key = read_key(bytes);
    if (pages < 1) throw py::value_error("pages is " + std::to_string(pages) + ", it must be at least 1");
    const auto [added, is_added] = nodes_.try_emplace(key, key);
    if (!is_added)
      throw py::value_error("key " + py::str(bytes.attr("hex")()).cast<std::string>() +
                            " is already in the policy");
    try {
      policy_->insert(added->second, pages, cost);
    } catch (...) {
      nodes_.erase(added);
      throw;
    }
    ++num_changes_;
  }

  void touch(const py::bytes& key) {
    policy_->touch(find(key)->second);
    ++num_changes_;
  }

  void remove(const py::bytes& key) {
    const auto found = find(key);
    policy_->remove(found->second);
    nodes_.erase(found);
    ++num_changes_;
  }

  void evict(const py::bytes& key) {
    const auto found = find(key);
    policy_->evict(found->second);
    nodes_.erase(found);
    ++num_changes_;
  }

  bool is_worth_copy(const py::bytes& key) { return policy_->is_worth_copy(find(key)->second); }

  const Policy& policy() const { return *policy_; }
  std::uint64_t num_changes() const { return num_changes_; }

 private:
  using Nodes = std::unordered_map<Key, PolicyNode, KeyHash>;  // the addresses of its values are fixed

  // Throws KeyError with the key, as a dict does.
  Nodes::iterator find(const py::bytes& bytes) {
    const auto found = nodes_.find(read_key(bytes));
    if (found == nodes_.end()) {
      PyErr_SetObject(PyExc_KeyError, bytes.ptr());
      throw py::error_already_set();
    }
    return found;
  }

  Nodes nodes_;
  std::unique_ptr<Policy> policy_;
  std::uint64_t num_changes_ = 0;
};

// An iterator over the keys of a policy in the order of eviction. If the policy has changed, the next victim
// may be freed, so the iterator raises RuntimeError, as that of a dict does.
class Victims {
 public:
  explicit Victims(const KeyedPolicy& policy)
      : policy_(policy), num_changes_(policy.num_changes()), next_(policy.policy().first_victim()) {}

  py::bytes next() {
    if (next_ == nullptr) throw py::stop_iteration();
    if (policy_.num_changes() != num_changes_)
      throw std::runtime_error("the policy changed during the iteration over its victims");
    const PolicyNode& node = *next_;
    py::bytes key = from_key(node.key);
    next_ = policy_.policy().next_victim(node);
    return key;
  }

 private:
  const KeyedPolicy& policy_;  // the binding keeps it alive
  std::uint64_t num_changes_;
  const PolicyNode* next_;
};

// Each policy is a class of its own, so that Python sees its name.
template <typename NativePolicy>
class Keyed : public KeyedPolicy {
 public:
  explicit Keyed(std::unique_ptr<Policy> policy) : KeyedPolicy(std::move(policy)) {}
};

template <typename NativePolicy>
void bind_policy(py::module_& module, const char* class_name, const char* name, const char* summary) {
  using Class = Keyed<NativePolicy>;
  py::class_<Class>(module, class_name, summary)
      .def(py::init([name = std::string(name)](std::int64_t capacity_pages) {
             return std::make_unique<Class>(make_policy(name, capacity_pages));
           }),
           py::arg("capacity_pages"))
      .def("insert", &Class::insert, py::arg("key"), py::arg("pages"), py::arg("cost"))
      .def("touch", &Class::touch, py::arg("key"))
      .def("remove", &Class::remove, py::arg("key"))
      .def("evict", &Class::evict, py::arg("key"))
      .def("is_worth_copy", &Class::is_worth_copy, py::arg("key"))
      .def(
          "victims",
          [](const Class& policy) { return py::typing::Iterator<py::bytes>(py::cast(Victims(policy))); },
          py::keep_alive<0, 1>());
}

}  // namespace

void bind_policies(py::module_& module) {
  py::class_<Victims>(module, "Victims", "The keys of a policy, the next victim first.")
      .def("__iter__", [](const py::object& victims) { return py::typing::Iterator<py::bytes>(victims); })
      .def("__next__", &Victims::next);
  bind_policy<Lru>(module, "LruPolicy", "lru",
                   "Evicts the key whose insertion or last hit is the longest ago (csrc/cache/lru.h).");
  bind_policy<S3Fifo>(module, "S3FifoPolicy", "s3fifo",
                      "Evicts keys that were not hit soon after their insertion (csrc/cache/s3fifo.h).");
  bind_policy<CostAware>(
      module, "CostAwarePolicy", "cost",
      "Evicts the key that saves the least encode time per page (csrc/cache/cost_aware.h).");
}

}  // namespace vitcache
