// Runs of random numbers, and whether they are valid, for the subjects that place rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fuzz.h"
#include "placement/placement.h"

namespace fuzz {

using Numbers = std::vector<std::int64_t>;

// As a rule runs that fit into their items and do not overlap: some of their numbers are then replaced, and
// some runs exchanged. `rows` are the numbers of rows of the items.
inline std::vector<vitcache::Run> some_runs(Random& random, const Numbers& rows, std::int64_t num_tokens) {
  const auto last = static_cast<std::int64_t>(rows.size()) - 1;
  std::vector<vitcache::Run> runs;
  std::int64_t token = 0;
  for (std::int64_t count = last < 0 ? 0 : random.up_to(5); count > 0; --count) {
    const std::int64_t item = random.up_to(last);
    const std::int64_t num_rows = std::clamp<std::int64_t>(rows[static_cast<std::size_t>(item)], 0, 16);
    const std::int64_t left = std::clamp<std::int64_t>(num_tokens - token, 0, 64);
    const std::int64_t length = random.up_to(std::min(num_rows, left));
    vitcache::Run run{item, token + random.up_to(left - length), length, random.up_to(num_rows - length)};
    token = run.start + length;
    run.item = random.one_in(80) ? random.number(last, 1) : run.item;
    run.start = random.one_in(60) ? random.number(num_tokens, 1) : run.start;
    run.length = random.one_in(60) ? random.number(num_rows, 2) : run.length;
    run.source_start = random.one_in(60) ? random.number(num_rows, 2) : run.source_start;
    runs.push_back(run);
    if (random.one_in(3))
      std::swap(runs.back(),
                runs[static_cast<std::size_t>(random.up_to(static_cast<std::int64_t>(runs.size()) - 1))]);
  }
  return runs;
}

inline bool are_valid(const std::vector<vitcache::Run>& runs, const Numbers& rows, std::int64_t num_tokens) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 60;
  return std::all_of(runs.begin(), runs.end(), [&](const vitcache::Run& run) {
    if (run.item < 0 || run.item >= static_cast<std::int64_t>(rows.size())) return false;
    for (const std::int64_t value : {run.start, run.length, run.source_start})
      if (value < 0 || value > kLargest) return false;
    return Wide{run.start} + run.length <= num_tokens &&
           Wide{run.source_start} + run.length <= rows[static_cast<std::size_t>(run.item)];
  });
}

inline bool overlap(const std::vector<vitcache::Run>& runs) {
  for (std::size_t i = 0; i < runs.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (runs[i].length > 0 && runs[j].length > 0 && runs[i].start < Wide{runs[j].start} + runs[j].length &&
          runs[j].start < Wide{runs[i].start} + runs[i].length)
        return true;
  return false;
}

inline std::int64_t num_placed(const std::vector<vitcache::Run>& runs) {
  std::int64_t rows = 0;
  for (const vitcache::Run& run : runs) rows += run.length;
  return rows;
}

// The number of tokens before `token` that valid runs place.
inline std::int64_t rank_of(const std::vector<vitcache::Run>& runs, std::int64_t token) {
  std::int64_t rank = 0;
  for (const vitcache::Run& run : runs) rank += std::clamp<std::int64_t>(token - run.start, 0, run.length);
  return rank;
}

}  // namespace fuzz
