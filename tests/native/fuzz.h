// The subjects of the fuzzer, and the random numbers that their inputs are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace fuzz {

// Truths are computed in 128 bits.
__extension__ using Wide = __int128;

// Numbers that follow from a seed alone (SplitMix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15ULL;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebULL;
    return mixed ^ (mixed >> 31);
  }

  // A number from 0 to `most`, which is at least 0.
  std::int64_t up_to(std::int64_t most) {
    return static_cast<std::int64_t>(bits() % (static_cast<std::uint64_t>(most) + 1));
  }

  bool one_in(std::int64_t number) { return up_to(number - 1) == 0; }

  template <typename Value>
  Value pick(std::initializer_list<Value> values) {
    return values.begin()[up_to(static_cast<std::int64_t>(values.size()) - 1)];
  }

  // As a rule a number from 0 to `most`. In one of `rarity` cases a hostile one: beside a bound, or near a
  // power of two of either sign.
  std::int64_t number(std::int64_t most, std::int64_t rarity) {
    if (!one_in(rarity)) return up_to(most);
    if (one_in(2)) return pick<std::int64_t>({-1, most + 1, most});
    const std::uint64_t power = std::uint64_t{1} << up_to(63);
    const std::uint64_t value = power + static_cast<std::uint64_t>(up_to(4)) - 2;
    return static_cast<std::int64_t>(one_in(2) ? value : 0 - value);
  }

 private:
  std::uint64_t state_;
};

// Whether the code accepted an input. If it did, the subject has compared the results with the truth.
enum class Verdict { kRefused, kAccepted };

// Makes one input, gives it to the code, and ends the process if the code is wrong.
using Subject = Verdict (*)(Random& random);

Verdict range_of_a_tensor(Random& random);
Verdict range_of_rows(Random& random);
Verdict strided_view(Random& random);
Verdict placement_tables(Random& random);
Verdict placement_copies(Random& random);
Verdict step_plan(Random& random);

// Runs `call`, and returns whether it returned. False: it refused the input by one of the documented
// exceptions.
template <typename Call>
bool is_accepted(Call call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return false;
  } catch (const std::out_of_range&) {
    return false;
  }
  return true;
}

}  // namespace fuzz
