#include "cache/seen_sketch.h"

#include <algorithm>

namespace vitcache {
namespace {

constexpr std::uint64_t kWordBits = 64;

// The mixing step of SplitMix64 (Sebastiano Vigna, public domain): every bit of `hash` changes about half of
// the result's bits.
std::uint64_t mix(std::uint64_t hash) {
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
  return hash ^ (hash >> 31);
}

// The number of 64-bit words of a filter: its bits are a power of two, so that a mask chooses a bit.
std::size_t num_words(std::int64_t num_keys) {
  std::uint64_t bits = kWordBits;
  while (bits < static_cast<std::uint64_t>(SeenSketch::kBitsPerKey) * static_cast<std::uint64_t>(num_keys))
    bits *= 2;
  return bits / kWordBits;
}

}  // namespace

SeenSketch::SeenSketch(std::int64_t num_keys)
    : num_keys_(std::max<std::int64_t>(1, num_keys)),
      num_free_(num_keys_),
      young_(num_words(num_keys_)),
      old_(young_.size()) {}

void SeenSketch::add(const Key& key) {
  if (num_free_ == 0) {
    young_.swap(old_);
    std::fill(young_.begin(), young_.end(), 0);
    num_free_ = num_keys_;
  }
  --num_free_;
  for (const std::uint64_t bit : bits_of(key))
    young_[bit / kWordBits] |= std::uint64_t{1} << (bit % kWordBits);
}

bool SeenSketch::contains(const Key& key) const {
  const Bits bits = bits_of(key);
  return has_all(young_, bits) || has_all(old_, bits);
}

// KeyHash does not mix the last word of a key fully, so its result is mixed again, with two different
// constants. Each result contains two positions.
SeenSketch::Bits SeenSketch::bits_of(const Key& key) const {
  constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15ULL;
  const std::uint64_t mask = young_.size() * kWordBits - 1;
  const std::uint64_t hash = KeyHash{}(key);
  const std::uint64_t first = mix(hash + kStep);
  const std::uint64_t second = mix(hash + 2 * kStep);
  return {first & mask, (first >> 32) & mask, second & mask, (second >> 32) & mask};
}

bool SeenSketch::has_all(const Filter& filter, const Bits& bits) {
  return std::all_of(bits.begin(), bits.end(), [&filter](std::uint64_t bit) {
    return (filter[bit / kWordBits] >> (bit % kWordBits) & 1) != 0;
  });
}

}  // namespace vitcache
