// Nodes for tests of policies, and the order of eviction as numbers.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cache/policy.h"

using Numbers = std::vector<std::uint64_t>;

inline vitcache::Key key_of(std::uint64_t number) { return vitcache::Key{{number, 0, 0, 0}}; }

// Nodes whose keys are the numbers from 0. A deque does not move its elements.
inline std::deque<vitcache::PolicyNode> make_nodes(std::uint64_t count) {
  std::deque<vitcache::PolicyNode> nodes;
  for (std::uint64_t number = 0; number < count; ++number) nodes.emplace_back(key_of(number));
  return nodes;
}

inline Numbers victims(const vitcache::Policy& policy) {
  Numbers numbers;
  for (const vitcache::PolicyNode* node = policy.first_victim(); node != nullptr;
       node = policy.next_victim(*node))
    numbers.push_back(node->key.words[0]);
  return numbers;
}
