// Tiers, ledgers and fences for tests of the ledger.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "cache/ledger.h"
#include "check.h"
#include "policy_nodes.h"

constexpr std::int64_t kStream = 7;
constexpr std::int64_t kWidth = 2;  // elements of a full row

// `name` is "device" or "host"; a row has two elements of float32.
inline std::shared_ptr<vitcache::Tier> make_tier(const std::string& name, std::int64_t num_pages,
                                                 std::int64_t page_rows,
                                                 std::shared_ptr<void> memory = nullptr) {
  vitcache::TierLayout layout{name, name == "host", num_pages, page_rows, kWidth, 8, 4096, 0, false, -1};
  return std::make_shared<vitcache::Tier>(std::move(layout), std::move(memory));
}

inline vitcache::MakePolicy policy_maker(const std::string& name) {
  return [name](std::int64_t capacity) { return vitcache::make_policy(name, capacity); };
}

// A fence that is never complete.
inline vitcache::Fence make_fence(std::int64_t stream = kStream) { return {stream, std::make_shared<int>()}; }

// Writes an entry without a failure.
inline bool put(vitcache::Ledger& ledger, std::uint64_t number, std::int64_t num_rows,
                std::int64_t row_width = kWidth) {
  const vitcache::PendingPtr pending =
      ledger.begin_write(key_of(number), num_rows, row_width, 1.0, ledger.epoch());
  if (pending == nullptr) return false;
  if (!pending->demotions.empty()) pending->set_copied(make_fence());
  return ledger.finish(pending, make_fence(), false);
}
