// The module vitcache._native: the parts of the core that Python calls. Only this folder depends on Python.
#include <pybind11/pybind11.h>

#include <exception>

#include "python/bindings.h"
#include "ring/ring.h"
#include "runtime/error.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// vitcache.CudaError is a Python class, so that it exists without this module.
// NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 prescribes the type
void translate_errors(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const OutOfMemory& out_of_memory) {
    py::set_error(PyExc_MemoryError, out_of_memory.what());
  } catch (const RingTimeout& timeout) {
    py::set_error(PyExc_TimeoutError, timeout.what());
  } catch (const CudaError& cuda_error) {
    py::set_error(py::module_::import("vitcache.errors").attr("CudaError"), cuda_error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("version") = VITCACHE_VERSION;
  module.attr("compiler") = VITCACHE_COMPILER;
  module.attr("flags") = VITCACHE_FLAGS;
  py::register_local_exception_translator(translate_errors);
  bind_runtime(module);
  bind_placement(module);
  bind_ring(module);
  bind_policies(module);
  bind_pipeline(module);
  bind_cache(module);
  bind_turns(module);
  bind_ledger(module);
  bind_module_watch(module);
}

}  // namespace vitcache
