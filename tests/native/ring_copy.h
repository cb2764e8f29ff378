// A copy through a ring, with its source and destination.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "ring/ring.h"

using Bytes = std::vector<std::byte>;
using Seconds = std::chrono::duration<double>;

inline Bytes random_bytes(std::size_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  Bytes memory(bytes);
  for (std::byte& value : memory) value = static_cast<std::byte>(random());
  return memory;
}

struct Copy {
  Bytes source, destination;
  std::shared_ptr<vitcache::Ticket> ticket;

  Copy(vitcache::Ring& ring, std::size_t bytes, unsigned seed, std::optional<Seconds> timeout = {},
       std::optional<vitcache::Stream> after = {})
      : source(random_bytes(bytes, seed)), destination(bytes), ticket(ring.make_ticket()) {
    const auto view = std::make_shared<const vitcache::StridedView>(
        source.data(), 1, std::vector<std::int64_t>{static_cast<std::int64_t>(bytes)},
        std::vector<std::int64_t>{1});
    try {
      ring.copy(*ticket, destination.data(), view, vitcache::Cast::kNone, after, timeout);
    } catch (const std::runtime_error&) {
      abandon();
      throw;
    }
  }

  // Keeps the memory alive for ever: pieces that were queued before the exception still access it.
  void abandon() {
    static std::mutex mutex;
    static std::vector<std::pair<Bytes, Bytes>> abandoned;
    const std::lock_guard<std::mutex> lock(mutex);
    abandoned.emplace_back(std::move(source), std::move(destination));
  }

  void check() const {
    ticket->synchronize();
    CHECK(ticket->done() && ticket->source_read());
    CHECK(source == destination);
  }
};
