// Placements of random numbers at random addresses, and whether their destination must refuse them.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "fuzz.h"
#include "fuzz_placement.h"
#include "placement/destination.h"
#include "placement/placement.h"

namespace fuzz {

constexpr std::int64_t kMostRows = 64;  // of inputs whose rows are visited one by one

struct Input {
  vitcache::Destination destination;
  std::vector<vitcache::Source> sources;
  std::map<std::int64_t, vitcache::Source> stores;
  std::vector<vitcache::Run> runs;
};

// None if the pages of a source were refused, as they should be.
std::optional<Input> some_input(Random& random);

// Memory may be refused if the ranges of rows meet, and must be if two rows share a byte.
struct Judgement {
  bool is_wrong = false;
  bool may_be_refused = false;
};

Judgement judge(const Input& input);

}  // namespace fuzz
