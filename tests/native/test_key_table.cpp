// The table of entries by key equals std::unordered_map in random traces, with keys that collide.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cache/key_table.h"
#include "check.h"
#include "ledger_cases.h"

namespace {

using vitcache::EntryPtr;
using vitcache::Fence;
using vitcache::Key;
using vitcache::KeyHash;
using vitcache::KeyTable;
using vitcache::Tier;

using Model = std::unordered_map<Key, EntryPtr, KeyHash>;

EntryPtr make_entry(const Key& key) {
  static const std::shared_ptr<Tier> tier = make_tier("device", 1, 1);
  return std::make_shared<vitcache::Entry>(key, 1.0, tier, tier->describe({0}, 1, kWidth), Fence{});
}

// Keys whose hashes, modulo `modulus`, are in [first, first + width): their runs join, and wrap if the range
// ends at the modulus.
std::vector<Key> find_keys(std::size_t count, std::size_t modulus, std::size_t first, std::size_t width) {
  std::vector<Key> keys;
  for (std::uint64_t number = 0; keys.size() < count; ++number)
    if (KeyHash{}(key_of(number)) % modulus - first < width) keys.push_back(key_of(number));
  return keys;
}

void check_equal(const KeyTable& table, const Model& model, const std::vector<Key>& keys) {
  CHECK_EQUAL(table.size(), model.size());
  for (const Key& key : keys) {
    const EntryPtr* const found = table.find(key);
    const auto expected = model.find(key);
    CHECK((found == nullptr) == (expected == model.end()));
    CHECK(found == nullptr || *found == expected->second);
  }
  std::unordered_set<vitcache::Entry*> visited;
  table.visit([&](const EntryPtr& entry) {
    CHECK(visited.insert(entry.get()).second);
    CHECK(model.at(entry->key) == entry);
  });
  CHECK_EQUAL(visited.size(), model.size());
}

// Inserts and takes random keys. The share of insertions changes, so that the table fills and empties.
void run_trace(const std::vector<Key>& keys, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  KeyTable table;
  Model model;
  for (int step = 0; step < 6000; ++step) {
    const Key& key = keys[random() % keys.size()];
    const bool inserts = random() % 8 < (step / 1000 % 2 == 0 ? 6U : 2U);
    if (inserts && model.count(key) == 0) {
      const EntryPtr entry = make_entry(key);
      table.insert(entry);
      model.emplace(key, entry);
    } else if (!inserts) {
      const EntryPtr taken = table.take(key);
      const auto expected = model.find(key);
      CHECK(taken == (expected == model.end() ? nullptr : expected->second));
      model.erase(key);
    } else {
      const EntryPtr* const found = table.find(key);
      CHECK(found != nullptr && *found == model.at(key));
    }
    if (step % 50 == 0) check_equal(table, model, keys);
  }
  check_equal(table, model, keys);
  while (table.size() > 0) {
    const Key key = table.any()->key;
    CHECK(table.take(key) == model.at(key));
    model.erase(key);
    if (model.size() % 16 == 0) check_equal(table, model, keys);
  }
  CHECK(model.empty());
  CHECK(table.take(keys[0]) == nullptr && table.find(keys[0]) == nullptr);
  table.insert(make_entry(keys[0]));  // an emptied table is a table
  CHECK(table.any()->key == keys[0]);
}

void table_equals_a_map() {
  const std::vector<std::vector<Key>> sets{
      find_keys(200, 1, 0, 1),           // any keys
      find_keys(60, 4096, 0, 1),         // one home in every size of the table
      find_keys(60, 4096, 4095, 1),      // a run that wraps
      find_keys(100, 512, 500, 12),      // runs that join and wrap
      find_keys(100, 1024, 300, 8),      // runs that join
      {key_of(0), key_of(1), key_of(2)}  // the smallest table
  };
  for (std::size_t i = 0; i < sets.size(); ++i)
    for (std::uint64_t seed = 0; seed < 3; ++seed) run_trace(sets[i], 10 * i + seed);
}

// Takes each entry of a run of one home, and of the same run after other homes, one at a time.
void deletion_inside_of_a_run_loses_no_key() {
  for (const std::size_t width : {std::size_t{1}, std::size_t{3}}) {
    const std::vector<Key> keys = find_keys(30, 64, 62 - width, width + 2);
    for (const Key& taken : keys) {
      KeyTable table;
      Model model;
      for (const Key& key : keys) table.insert(model[key] = make_entry(key));
      CHECK(table.take(taken) == model[taken]);
      model.erase(taken);
      check_equal(table, model, keys);
    }
  }
}

void growth_keeps_every_key() {
  KeyTable table;
  Model model;
  std::vector<Key> keys;
  for (std::uint64_t number = 0; number < 3000; ++number) {
    keys.push_back(key_of(number));
    table.insert(model[keys.back()] = make_entry(keys.back()));
    if ((number & (number + 1)) == 0) check_equal(table, model, keys);
  }
  check_equal(table, model, keys);
}

}  // namespace

int main() {
  table_equals_a_map();
  deletion_inside_of_a_run_loses_no_key();
  growth_keeps_every_key();
}
