// Reads the items and the chunks that Python passes to a step, by their attributes: no Python frame runs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "pipeline/item_arrays.h"
#include "pipeline/step_plan.h"

namespace vitcache {

// The integer `value`, if it is between -2 * kLargestToken and 2 * kLargestToken; else the nearer of the two.
// No span is outside of them, so a range of tokens finds the same spans.
std::int64_t read_bounded(pybind11::handle value);

// Raises TypeError if an element is not an `item_type`; IndexError if a number of a span is larger than
// kLargestToken or a number of rows has more than 64 bits. The objects must live as long as their arrays: an
// address is the identity of an item.
ItemArrays read_items(const pybind11::tuple& items, const pybind11::type& item_type);

// The `items` of each chunk of a list or tuple of `chunk_type`. Raises TypeError for other arguments. A step
// reads them once: the caller may change the list while features are loaded.
pybind11::tuple read_requests(const pybind11::object& chunks, const pybind11::type& chunk_type);

// The plan of chunks, whose items `read_requests` returned and which live as long as the plan is used. Raises
// as StepPlan.
StepPlan plan_chunks(const pybind11::object& chunks, const pybind11::tuple& requests,
                     const pybind11::bytes& key_namespace, std::int64_t num_tokens, std::int64_t row_width,
                     std::int64_t hidden);

// Whether an item of the requests has a given key into which a namespace is not folded yet.
bool has_unfolded(const pybind11::tuple& requests, const pybind11::bytes& key_namespace);

}  // namespace vitcache
