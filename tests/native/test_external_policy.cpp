// The policy whose order is decided outside of the core; and every policy while memory runs out.
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cache/external_policy.h"
#include "cache/policy.h"
#include "check.h"
#include "policy_nodes.h"

namespace {

// Number of allocations until one fails; a negative number does not fail.
int allocations_left = -1;

}  // namespace

void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using vitcache::ExternalPolicy;
using vitcache::make_policy;
using vitcache::Policy;
using vitcache::PolicyEvent;
using vitcache::PolicyNode;

void external_policy_logs_events_and_merges_adjacent_hits() {
  ExternalPolicy policy;
  std::deque<PolicyNode> nodes = make_nodes(2);
  policy.insert(nodes[0], 3, 1.5);
  policy.insert(nodes[1], 1, 2.0);
  for (int hit = 0; hit < 1000; ++hit) policy.touch(nodes[0]);
  policy.touch(nodes[1]);
  policy.touch(nodes[0]);
  policy.remove(nodes[0]);
  policy.evict(nodes[1]);
  CHECK_EQUAL(policy.num_events(), 7U);
  const std::vector<PolicyEvent> events = policy.take_events();
  using Kind = PolicyEvent::Kind;
  CHECK(events[0].kind == Kind::kInsert && events[0].key == key_of(0) && events[0].pages == 3);
  CHECK_EQUAL(events[0].cost, 1.5);
  CHECK(events[2].kind == Kind::kTouch && events[2].key == key_of(0) && events[2].hits == 1000);
  CHECK(events[3].kind == Kind::kTouch && events[3].key == key_of(1) && events[3].hits == 1);
  CHECK(events[4].kind == Kind::kTouch && events[4].key == key_of(0) && events[4].hits == 1);
  CHECK(events[5].kind == Kind::kRemove && events[5].key == key_of(0));
  CHECK(events[6].kind == Kind::kEvict && events[6].key == key_of(1));
  CHECK_EQUAL(policy.num_events(), 0U);
  CHECK(victims(policy).empty());
}

void external_policy_evicts_in_the_given_order_and_then_the_other_keys() {
  ExternalPolicy policy;
  std::deque<PolicyNode> nodes = make_nodes(7);
  for (std::size_t number = 0; number < 6; ++number) policy.insert(nodes[number], 1, 1.0);
  CHECK((victims(policy) == Numbers{0, 1, 2, 3, 4, 5}));
  CHECK(policy.is_worth_copy(nodes[4]));
  // Key 9 is not in the policy, and key 4 is named twice.
  policy.set_order(
      {{key_of(4), false}, {key_of(9), true}, {key_of(2), true}, {key_of(4), true}, {key_of(0), false}});
  CHECK((victims(policy) == Numbers{4, 2, 0, 1, 3, 5}));
  CHECK(!policy.is_worth_copy(nodes[4]) && policy.is_worth_copy(nodes[2]) && policy.is_worth_copy(nodes[1]));
  policy.touch(nodes[4]);  // a hit moves only keys without a place
  policy.touch(nodes[1]);
  policy.insert(nodes[6], 1, 1.0);
  CHECK((victims(policy) == Numbers{4, 2, 0, 3, 5, 1, 6}));
  policy.evict(nodes[2]);
  CHECK((victims(policy) == Numbers{4, 0, 3, 5, 1, 6}));
  policy.remove(nodes[4]);
  policy.insert(nodes[4], 1, 1.0);  // again, so without a place
  CHECK((victims(policy) == Numbers{0, 3, 5, 1, 6, 4}));
  CHECK(policy.is_worth_copy(nodes[4]));
  policy.set_order({{key_of(6), true}});
  CHECK((victims(policy) == Numbers{6, 0, 3, 5, 1, 4}));
  CHECK(policy.is_worth_copy(nodes[0]));
  policy.set_order({});
  CHECK((victims(policy) == Numbers{0, 3, 5, 1, 6, 4}));
}

// Runs `call` with the first, then the second allocation failing, and so on, until it succeeds. A call that
// fails must leave the order and the worth of each entry as they are.
template <typename Call>
int run_with_failures(const Policy& policy, const std::deque<PolicyNode>& nodes, const Call& call) {
  const auto worth = [&] {
    std::vector<bool> flags;
    for (const std::uint64_t number : victims(policy)) flags.push_back(policy.is_worth_copy(nodes[number]));
    return flags;
  };
  for (int failures = 0;; ++failures) {
    const Numbers before = victims(policy);
    const std::vector<bool> worth_before = worth();
    allocations_left = failures;
    try {
      call();
      allocations_left = -1;
      return failures;
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
      CHECK(victims(policy) == before);
      CHECK(worth() == worth_before);
    }
  }
}

void failed_allocation_leaves_each_policy_as_it_was() {
  for (const char* name : {"lru", "s3fifo", "cost", "external"}) {
    const bool is_external = std::string(name) == "external";
    const std::unique_ptr<Policy> policy =
        is_external ? std::make_unique<ExternalPolicy>() : make_policy(name, 40);
    std::deque<PolicyNode> nodes = make_nodes(60);
    std::vector<bool> present(nodes.size());
    std::uint64_t state = 7;
    int failures = 0;
    for (int step = 0; step < 4000; ++step) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const std::size_t number = (state >> 33) % nodes.size();
      const std::uint64_t action = (state >> 60) % 8;
      failures += run_with_failures(*policy, nodes, [&] {
        PolicyNode& node = nodes[number];
        if (!present[number])
          policy->insert(node, static_cast<std::int64_t>(1 + number % 5), static_cast<double>(number));
        else if (action < 5)
          policy->touch(node);
        else
          action == 5 ? policy->remove(node) : policy->evict(node);
      });
      present[number] = !present[number] || action < 5;
    }
    CHECK((failures == 0) == (std::string(name) == "lru"));
  }
}

void failed_set_order_keeps_the_previous_order() {
  ExternalPolicy policy;
  std::deque<PolicyNode> nodes = make_nodes(3);
  for (PolicyNode& node : nodes) policy.insert(node, 1, 1.0);
  policy.set_order({{key_of(2), false}});
  const std::vector<std::pair<vitcache::Key, bool>> order{{key_of(1), true}, {key_of(0), false}};
  CHECK(run_with_failures(policy, nodes, [&] { policy.set_order(order); }) > 0);
  CHECK((victims(policy) == Numbers{1, 0, 2}));
  CHECK(!policy.is_worth_copy(nodes[0]) && policy.is_worth_copy(nodes[2]));
}

}  // namespace

int main() {
  external_policy_logs_events_and_merges_adjacent_hits();
  external_policy_evicts_in_the_given_order_and_then_the_other_keys();
  failed_allocation_leaves_each_policy_as_it_was();
  failed_set_order_keeps_the_previous_order();
}
