// The bindings, one function per room of csrc/. They must be called in this order: a signature can name only
// types that an earlier call has bound.
#pragma once

#include <pybind11/pybind11.h>

namespace vitcache {

void bind_runtime(pybind11::module_& module);
void bind_placement(pybind11::module_& module);
void bind_ring(pybind11::module_& module);
void bind_policies(pybind11::module_& module);
void bind_cache(pybind11::module_& module);
void bind_turns(pybind11::module_& module);
void bind_ledger(pybind11::module_& module);
void bind_module_watch(pybind11::module_& module);
void bind_pipeline(pybind11::module_& module);

}  // namespace vitcache
