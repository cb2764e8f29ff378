#include "python/token.h"

#include <utility>
#include <vector>

namespace py = pybind11;

namespace vitcache {
namespace {

int num_mutations = 0;
std::vector<PyObject*> unreferenced;

void forget(void* object) {
  if (num_mutations > 0)
    unreferenced.push_back(static_cast<PyObject*>(object));
  else
    Py_DECREF(static_cast<PyObject*>(object));
}

}  // namespace

Mutation::Mutation() { ++num_mutations; }

Mutation::~Mutation() {
  if (--num_mutations > 0 || unreferenced.empty()) return;
  // A finalizer may call the core again, so the list is emptied first.
  std::vector<PyObject*> objects;
  objects.swap(unreferenced);
  for (PyObject* object : objects) Py_DECREF(object);
}

std::shared_ptr<void> make_token(py::handle object) {
  if (object.is_none()) return nullptr;
  return {object.inc_ref().ptr(), forget};
}

py::object object_of(const std::shared_ptr<void>& token) {
  if (token == nullptr) return py::none();
  return py::reinterpret_borrow<py::object>(static_cast<PyObject*>(token.get()));
}

}  // namespace vitcache
