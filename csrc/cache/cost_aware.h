// The policy "cost": evicts the key that saves the least encode time per page and was not hit recently.
//
// Thread rule: as for every policy (policy.h), the owner makes one call at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "cache/policy.h"
#include "cache/queue.h"
#include "cache/seen_sketch.h"

namespace vitcache {

// Evicts the class of keys that has the lowest value. A class contains keys of about the same value.
//
// The value of a key is its encode cost divided by its number of pages. It fades exponentially. Time is
// counted in hits, so a single pass over many keys does not age the other keys. Fading moves no key to
// another class: keys that are inserted or hit later enter higher classes (forward decay: Cormode and others,
// 2009). Within a class, the key whose insertion or last hit is the longest ago is evicted first.
//
// The value of a new key is multiplied by the chance that a new key is ever hit, which is learned from the
// last new keys. If nearly all images are repeated, a new key has about the value of a key that was hit. In a
// single pass over many images the chance falls: soon new keys evict no key that was hit recently, and are
// not copied to the next tier. A key that is inserted again after its eviction counts as hit.
//
// Cost divided by size is from GreedyDual-Size (Cao and Irani, 1997), the sketch of seen keys from TinyLFU
// (Einziger and others, 2017).
//
// `insert` and `touch` allocate memory if they create a class; no other operation allocates memory. An
// operation finds its class in a map of a few dozen classes.
class CostAware final : public Policy {
 public:
  static constexpr int kClassesPerDoubling = 2;
  // In a round, which is one hit per key on average, the value of a key that is not hit fades to an eighth.
  static constexpr int kFadingPerRound = 3 * kClassesPerDoubling;
  // The hit chance of a new key is a moving average over about this number of new keys.
  static constexpr int kLearnedFrom = 128;
  // If the hit chance is lower, a new key is not worth a copy to the next tier, and its value is computed
  // with this chance. Then a key that was hit within the last round has a higher value than the new key, even
  // if the pages of the hit key are half full.
  static constexpr double kLeastChance = 1.0 / 16;
  // Values, in the caller's unit per page, are clamped to this range.
  static constexpr double kLeastValue = 0x1p-40;
  static constexpr double kMostValue = 0x1p40;

  explicit CostAware(std::int64_t capacity_pages);

  void insert(PolicyNode& node, std::int64_t pages, double cost) override;
  // Moves a node to the class of its value before fading.
  void touch(PolicyNode& node) override;
  void remove(PolicyNode& node) override;
  // Removes a node, and remembers its key in the sketch.
  void evict(PolicyNode& node) override;
  // Whether the node was hit, or new keys have a sufficient chance to be hit.
  bool is_worth_copy(const PolicyNode& node) const override;
  // Class by class, the lowest value first.
  PolicyNode* first_victim() const override;
  PolicyNode* next_victim(const PolicyNode& node) const override;

  std::size_t num_classes() const { return classes_.size(); }

 private:
  // The numbers that all nodes share.
  struct Progress {
    double fading = 0;      // of all values since the start, as a number of classes
    double hit_chance = 0;  // of a new key
  };

  Progress after_hit(bool is_new, std::int64_t num_nodes) const;

  // `PolicyNode::value` is a node's value before fading, as a number of classes; `PolicyNode::queue` is the
  // number of its class. No class is empty.
  std::map<std::int64_t, PolicyQueue> classes_;
  std::int64_t num_nodes_ = 0;
  Progress progress_;
  SeenSketch evicted_;
};

}  // namespace vitcache
