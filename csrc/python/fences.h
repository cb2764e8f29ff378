// Fences between Python and the core: a pair (stream, event), as vitcache.device.streams.Fence.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "cache/fence.h"
#include "python/token.h"

namespace vitcache {

inline Fence to_fence(const pybind11::tuple& pair) {
  return {pair[0].cast<std::int64_t>(), make_token(pair[1])};
}

// None stands for no fence.
inline std::optional<Fence> to_optional_fence(const pybind11::object& pair) {
  if (pair.is_none()) return std::nullopt;
  return to_fence(pair.cast<pybind11::tuple>());
}

inline pybind11::tuple from_fence(const Fence& fence) {
  return pybind11::make_tuple(fence.stream, object_of(fence.event));
}

inline pybind11::list to_list(const FenceSet& fences) {
  pybind11::list list;
  for (const Fence& fence : fences.fences()) list.append(from_fence(fence));
  return list;
}

// Makes a fence complete if its event is among `events`, whose work is complete: later reads need not ask.
inline void forget_passed(Fence& fence, const pybind11::set& events) {
  if (!fence.is_complete() && events.contains(object_of(fence.event))) fence = Fence{};
}

}  // namespace vitcache
