// What Python may call, by the room that it is of. A binding comes after those whose types its signatures
// name.
#pragma once

#include <pybind11/pybind11.h>

namespace vitcache {

void bind_runtime(pybind11::module_& module);
void bind_placement(pybind11::module_& module);
void bind_ring(pybind11::module_& module);

}  // namespace vitcache
