// The tokens of one request that a step computes, and the checks of their places in the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/item_arrays.h"

namespace vitcache {

// Tokens `[start, start + length)` of a prompt, whose items are `items`. In the batch they begin at token
// `token_offset`. A number is at most 2 * kLargestToken. A window refers to its items.
struct Window {
  const ItemArrays* items;
  std::int64_t start;
  std::int64_t length;
  std::int64_t token_offset;
};

// The message for a chunk that ends after the last token. The numbers are words because a caller's number may
// have more than 64 bits.
std::string describe_misfit(std::size_t chunk, const std::string& offset, const std::string& end,
                            std::int64_t num_tokens);

// Throws std::out_of_range, naming the first chunk that ends after the last token of the batch.
void check_fit(const std::vector<Window>& windows, std::int64_t num_tokens);

// Throws std::invalid_argument, naming both chunks, if two chunks share a token of the batch. A window of
// length 0 overlaps nothing. The windows must fit.
void check_apart(const std::vector<Window>& windows);

}  // namespace vitcache
