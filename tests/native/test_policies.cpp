// The eviction policies, and the sketch of seen keys.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cache/cost_aware.h"
#include "cache/lru.h"
#include "cache/policy.h"
#include "cache/s3fifo.h"
#include "cache/seen_sketch.h"
#include "check.h"
#include "policy_nodes.h"

namespace {

using vitcache::CostAware;
using vitcache::Key;
using vitcache::Lru;
using vitcache::make_policy;
using vitcache::Policy;
using vitcache::PolicyNode;
using vitcache::S3Fifo;
using vitcache::SeenSketch;

void make_policy_knows_three_names_and_lists_them() {
  for (const char* name : {"lru", "s3fifo", "cost"})
    for (const std::int64_t capacity : {0, 1, 1000}) CHECK(victims(*make_policy(name, capacity)).empty());
  CHECK_THROWS(make_policy("random", 8), std::invalid_argument,
               "policy is 'random', it must be one of 'lru', 's3fifo', 'cost'");
}

void each_policy_contains_exactly_the_present_nodes() {
  for (const char* name : {"lru", "s3fifo", "cost"}) {
    const std::unique_ptr<Policy> policy = make_policy(name, 40);
    std::deque<PolicyNode> nodes = make_nodes(50);
    std::vector<bool> present(nodes.size());
    std::uint64_t state = 1;
    for (int step = 0; step < 20'000; ++step) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const std::size_t number = (state >> 33) % nodes.size();
      PolicyNode& node = nodes[number];
      const std::uint64_t action = (state >> 60) % 8;
      if (!present[number]) {
        policy->insert(node, static_cast<std::int64_t>(1 + number % 5), static_cast<double>(number));
        present[number] = true;
      } else if (action < 5) {
        policy->touch(node);
      } else {
        action == 5 ? policy->remove(node) : policy->evict(node);
        present[number] = false;
      }
      if (step % 100 != 0) continue;
      std::vector<bool> found(nodes.size());
      for (const std::uint64_t victim : victims(*policy)) {
        CHECK(!found[victim]);
        found[victim] = true;
      }
      CHECK(found == present);
    }
  }
}

void lru_touch_makes_a_node_the_last_victim() {
  Lru policy;
  std::deque<PolicyNode> nodes = make_nodes(4);
  for (PolicyNode& node : nodes) policy.insert(node, 1, 1.0);
  policy.touch(nodes[1]);
  policy.touch(nodes[0]);
  policy.touch(nodes[0]);
  CHECK((victims(policy) == Numbers{2, 3, 1, 0}));
  policy.evict(nodes[2]);
  policy.remove(nodes[0]);
  CHECK((victims(policy) == Numbers{3, 1}));
  policy.insert(nodes[2], 1, 1.0);
  CHECK((victims(policy) == Numbers{3, 1, 2}));
}

void s3fifo_hit_moves_a_node_to_the_main_queue() {
  S3Fifo policy(30);
  std::deque<PolicyNode> nodes = make_nodes(3);
  policy.insert(nodes[0], 1, 1.0);
  policy.insert(nodes[1], 1, 1.0);
  policy.touch(nodes[0]);
  CHECK((victims(policy) == Numbers{0, 1}));
  policy.insert(nodes[2], 2, 1.0);
  CHECK((victims(policy) == Numbers{1, 2, 0}));
  CHECK(policy.is_worth_copy(nodes[0]) && !policy.is_worth_copy(nodes[1]));
}

void s3fifo_ghosts_stay_at_their_limit_after_every_call() {
  S3Fifo policy(10);
  std::deque<PolicyNode> nodes = make_nodes(12);
  for (PolicyNode& node : nodes) policy.insert(node, 1, 1.0);
  for (std::size_t number = 0; number < 12; ++number) {
    number % 3 == 2 ? policy.remove(nodes[number]) : policy.evict(nodes[number]);
    CHECK(policy.num_ghosts() <= std::max<std::size_t>(1, 11 - number));
  }
  CHECK_EQUAL(policy.num_ghosts(), 1U);
  policy.insert(nodes[10], 1, 1.0);  // the last ghost
  CHECK(policy.is_worth_copy(nodes[10]));
  CHECK_EQUAL(policy.num_ghosts(), 0U);
  policy.insert(nodes[9], 1, 1.0);  // the oldest ghosts were forgotten
  CHECK(!policy.is_worth_copy(nodes[9]));
}

void cost_aware_evicts_the_least_cost_per_page_and_keeps_few_classes() {
  CostAware policy(100);
  std::deque<PolicyNode> nodes = make_nodes(50);
  for (std::size_t number = 0; number < nodes.size(); ++number)
    policy.insert(nodes[number], static_cast<std::int64_t>(1 + number % 20), 30.0);
  CHECK_EQUAL(victims(policy).front() % 20, 15U);  // the class of 16 and more pages begins with node 15
  for (std::size_t hit = 0; hit < 100'000; ++hit) policy.touch(nodes[hit % nodes.size()]);
  CHECK(policy.num_classes() < 50);
  for (PolicyNode& node : nodes) policy.evict(node);
  CHECK_EQUAL(policy.num_classes(), 0U);
}

void cost_that_is_not_a_number_is_the_least_cost() {
  CostAware policy(10);
  std::deque<PolicyNode> nodes = make_nodes(2);
  policy.insert(nodes[0], 1, 1.0);
  policy.insert(nodes[1], 1, 0.0 * std::numeric_limits<double>::infinity());
  CHECK((victims(policy) == Numbers{1, 0}));
}

void sketch_contains_added_keys_and_few_other_keys() {
  for (const std::int64_t num_keys : {0, 1, 3, 1000}) {
    for (std::size_t word = 0; word < 4; ++word) {
      SeenSketch sketch(num_keys);
      // The number is at the beginning or the end of the key, and at the beginning or the end of its word.
      const auto make = [word](std::uint64_t number) {
        Key key{};
        key.words[word] = word % 2 == 0 ? number : number << 40;
        return key;
      };
      const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(1, num_keys));
      for (std::uint64_t number = 0; number < 2 * count; ++number) sketch.add(make(number));
      for (std::uint64_t number = count; number < 2 * count; ++number) CHECK(sketch.contains(make(number)));
      int positives = 0;
      for (std::uint64_t number = 1'000'000; number < 1'100'000; ++number)
        positives += sketch.contains(make(number)) ? 1 : 0;
      CHECK(positives < 100);
      for (std::uint64_t number = 2 * count; number < 4 * count; ++number) sketch.add(make(number));
      CHECK(num_keys < 1000 || !sketch.contains(make(0)));
    }
  }
}

}  // namespace

int main() {
  make_policy_knows_three_names_and_lists_them();
  each_policy_contains_exactly_the_present_nodes();
  lru_touch_makes_a_node_the_last_victim();
  s3fifo_hit_moves_a_node_to_the_main_queue();
  s3fifo_ghosts_stay_at_their_limit_after_every_call();
  cost_aware_evicts_the_least_cost_per_page_and_keeps_few_classes();
  cost_that_is_not_a_number_is_the_least_cost();
  sketch_contains_added_keys_and_few_other_keys();
}
