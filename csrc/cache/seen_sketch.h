// A sketch of the keys that were seen recently, in a fixed number of bits.
//
// Thread rule: not thread-safe; the policy that owns the sketch makes one call at a time.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cache/key.h"

namespace vitcache {

// A set of recently added keys that forgets old keys. False positives: less than 1 in 1,000 other keys.
//
// Keys are added to the younger of two Bloom filters. Once it contains `num_keys` keys, it becomes the older
// filter, the previous older filter is cleared, and becomes the younger filter. A key is forgotten after
// `num_keys` to 2 x `num_keys` later keys. Keys are hashed, so they may be any bytes.
class SeenSketch {
 public:
  static constexpr std::int64_t kBitsPerKey = 32;

  // `num_keys` is the number of keys of one filter, at least 1 (a smaller number counts as 1). A key takes 8
  // to 16 bytes in the two filters together. Throws std::bad_alloc; the other functions do not throw.
  explicit SeenSketch(std::int64_t num_keys);

  void add(const Key& key);
  bool contains(const Key& key) const;

 private:
  static constexpr std::size_t kProbes = 4;
  using Bits = std::array<std::uint64_t, kProbes>;  // positions in a filter
  using Filter = std::vector<std::uint64_t>;

  Bits bits_of(const Key& key) const;
  static bool has_all(const Filter& filter, const Bits& bits);

  std::int64_t num_keys_;
  std::int64_t num_free_;  // number of keys that the younger filter still accepts
  Filter young_, old_;
};

}  // namespace vitcache
