// A hash table from keys to entries: one look-up reads one slot of the table and one entry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cache/entry.h"
#include "cache/key.h"

namespace vitcache {

// Open addressing with linear probing, at most half full. A slot contains the hash, so that a probe reads an
// entry only if the hashes are equal: with 100,000 entries every memory access of a look-up misses the CPU's
// caches, and std::unordered_map makes two more of them.
class KeyTable {
 public:
  std::size_t size() const { return size_; }

  // Returns null if no entry has this key.
  const EntryPtr* find(const Key& key) const {
    if (size_ == 0) return nullptr;
    const std::size_t slot = find_slot(key, hash_of(key));
    return slots_[slot].entry == nullptr ? nullptr : &slots_[slot].entry;
  }

  // Inserts an entry; no entry with its key may be in the table.
  void insert(EntryPtr entry) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    const std::uint64_t hash = hash_of(entry->key);
    std::size_t slot = hash & mask();
    while (slots_[slot].entry != nullptr) slot = (slot + 1) & mask();
    slots_[slot] = {hash, std::move(entry)};
    ++size_;
  }

  // Removes and returns the entry of a key; null if no entry has this key.
  EntryPtr take(const Key& key) {
    if (size_ == 0) return nullptr;
    std::size_t hole = find_slot(key, hash_of(key));
    EntryPtr taken = std::move(slots_[hole].entry);
    slots_[hole].entry = nullptr;
    if (taken == nullptr) return nullptr;
    --size_;
    // Moves later entries of the run back, so that no probe ends too early at the hole.
    for (std::size_t slot = (hole + 1) & mask(); slots_[slot].entry != nullptr; slot = (slot + 1) & mask()) {
      const std::size_t home = slots_[slot].hash & mask();
      if (((slot - home) & mask()) < ((slot - hole) & mask())) continue;
      slots_[hole] = std::move(slots_[slot]);
      slots_[slot].entry = nullptr;
      hole = slot;
    }
    return taken;
  }

  // Any entry; the table must not be empty. Visits every slot once while the table is emptied.
  const EntryPtr& any() {
    while (slots_[cursor_ & mask()].entry == nullptr) ++cursor_;
    return slots_[cursor_ & mask()].entry;
  }

  template <typename Visit>
  void visit(Visit visit) const {
    for (const Slot& slot : slots_)
      if (slot.entry != nullptr) visit(slot.entry);
  }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    EntryPtr entry;  // null: the slot is free
  };

  static std::uint64_t hash_of(const Key& key) { return KeyHash{}(key); }
  std::size_t mask() const { return slots_.size() - 1; }

  // The slot of a key, or the free slot at the end of its run.
  std::size_t find_slot(const Key& key, std::uint64_t hash) const {
    std::size_t slot = hash & mask();
    while (slots_[slot].entry != nullptr && (slots_[slot].hash != hash || slots_[slot].entry->key != key))
      slot = (slot + 1) & mask();
    return slot;
  }

  void grow() {
    std::vector<Slot> old = std::move(slots_);
    slots_ = std::vector<Slot>(old.empty() ? 16 : 2 * old.size());
    for (Slot& moved : old) {
      if (moved.entry == nullptr) continue;
      std::size_t slot = moved.hash & mask();
      while (slots_[slot].entry != nullptr) slot = (slot + 1) & mask();
      slots_[slot] = std::move(moved);
    }
  }

  std::vector<Slot> slots_;  // a power of two
  std::size_t size_ = 0;
  std::size_t cursor_ = 0;
};

}  // namespace vitcache
