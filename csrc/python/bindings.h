// The bindings, one function for each room. The order of the calls matters: signatures name types that an
// earlier function has bound.
#pragma once

#include <pybind11/pybind11.h>

namespace vitcache {

void bind_runtime(pybind11::module_& module);
void bind_placement(pybind11::module_& module);
void bind_ring(pybind11::module_& module);

}  // namespace vitcache
