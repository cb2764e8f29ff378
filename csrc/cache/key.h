// A content key: 32 bytes that name the rows of one item.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vitcache {

inline constexpr std::size_t kKeyBytes = 32;

struct Key {
  std::array<std::uint64_t, kKeyBytes / 8> words;

  // `bytes` points to kKeyBytes bytes.
  static Key from_bytes(const char* bytes) {
    Key key;
    std::memcpy(key.words.data(), bytes, kKeyBytes);
    return key;
  }

  const char* bytes() const { return reinterpret_cast<const char*>(words.data()); }

  bool operator==(const Key& other) const { return words == other.words; }
  bool operator!=(const Key& other) const { return words != other.words; }
};

// Callers may give keys of their own, such as small numbers, so all 32 bytes enter the hash and are mixed.
// The mixing step is the finalizer of MurmurHash3 (Austin Appleby, public domain).
struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0;
    for (const std::uint64_t word : key.words) {
      hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
      hash ^= hash >> 33;
    }
    hash *= 0xc4ceb9fe1a85ec53ULL;
    return hash ^ (hash >> 33);
  }
};

}  // namespace vitcache
