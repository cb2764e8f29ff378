#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings.h"
#include "python/claim.h"
#include "python/turn.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// A context manager that has a `T` from its entry to its exit, or until it is destroyed. `with` calls the
// methods in one instruction each, so a signal handler runs before the entry or after it, and never half-way.
template <typename T>
class Block {
 public:
  template <typename Make>
  explicit Block(Make make) : make_(std::move(make)) {}

  void enter() {
    if (entered_ != nullptr) throw std::runtime_error("the block was entered already");
    entered_ = make_();
  }
  void exit() { entered_.reset(); }

 private:
  std::function<std::unique_ptr<T>()> make_;
  std::unique_ptr<T> entered_;
};

template <typename T>
void bind_block(py::module_& module, const char* name) {
  py::class_<Block<T>>(module, name)
      .def("__enter__", &Block<T>::enter)
      .def("__exit__",
           [](Block<T>& self, const py::object&, const py::object&, const py::object&) { self.exit(); });
}

}  // namespace

void bind_turns(py::module_& module) {
  py::class_<TurnUse>(module, "TurnUse")
      .def("__enter__", &TurnUse::enter)
      .def("__exit__",
           [](TurnUse& self, const py::object&, const py::object&, const py::object&) { self.exit(); });
  py::class_<Turn, std::shared_ptr<Turn>>(module, "Turn")
      .def(py::init<std::string>(), py::arg("name"))
      .def(
          "of",
          [](const std::shared_ptr<Turn>& self, std::string call) {
            return std::make_unique<TurnUse>(self, std::move(call));
          },
          py::arg("call"))
      .def_property_readonly("holder", &Turn::current)
      .def_property_readonly("num_waiting", &Turn::num_waiting);
  bind_block<JobWait>(module, "JobWait");
  bind_block<JobRun>(module, "JobRun");
  module.def("current_turn", []() -> std::optional<std::string> {
    settle_forks();
    std::string call = last_turn_of(this_thread(), 0);
    if (call.empty()) return std::nullopt;
    return call;
  });
  module.def(
      "waits_for_jobs",
      [](std::optional<std::vector<unsigned long>> thread_ids) {
        return std::make_unique<Block<JobWait>>(
            [thread_ids = std::move(thread_ids)] { return std::make_unique<JobWait>(thread_ids); });
      },
      py::arg("thread_ids") = std::nullopt);
  module.def(
      "acts_for",
      [](unsigned long thread_id) {
        return std::make_unique<Block<JobRun>>([thread_id] { return std::make_unique<JobRun>(thread_id); });
      },
      py::arg("thread_id"));
  py::class_<KeyClaim>(module, "KeyClaim")
      .def_property_readonly("is_mine", &KeyClaim::is_mine)
      .def_property_readonly("is_released", &KeyClaim::is_released)
      .def_property_readonly("num_waiting", &KeyClaim::num_waiting)
      .def("take_over", &KeyClaim::take_over, py::arg("call"))
      .def("wait", &KeyClaim::wait, py::arg("call"), py::arg("timeout_s"))
      .def("release", &KeyClaim::release);
}

}  // namespace vitcache
