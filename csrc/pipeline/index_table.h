// A hash table of indices into an array of the caller, which compares the elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/key.h"

namespace vitcache {

// Hash of a key and a number of rows. Equal items share both, and the width of their rows.
inline std::size_t hash_of(const Key& key, std::int64_t num_rows) {
  return KeyHash()(key) + static_cast<std::size_t>(num_rows) * 0x9e3779b97f4a7c15ULL;
}

// Open addressing in one allocation, at most half full.
class IndexTable {
 public:
  explicit IndexTable(std::size_t max_entries) {
    std::size_t size = 4;
    while (size < 2 * max_entries) size *= 2;
    slots_.resize(size);
  }

  // Returns the index in the table whose element `matches`; if no element matches, adds and returns `index`.
  // `matches(index)` is called only for elements of the same slot sequence.
  template <typename Matches>
  std::size_t find_or_add(std::size_t hash, std::size_t index, Matches matches) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash & mask;
    for (; slots_[slot] != 0; slot = (slot + 1) & mask)
      if (matches(slots_[slot] - 1)) return slots_[slot] - 1;
    slots_[slot] = index + 1;
    return index;
  }

 private:
  std::vector<std::size_t> slots_;  // index + 1; 0: empty
};

}  // namespace vitcache
