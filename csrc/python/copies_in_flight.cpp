#include "python/copies_in_flight.h"

#include <algorithm>

namespace vitcache {

void CopiesInFlight::reap() {
  std::list<Copy> dropped;  // freed after the loop: their code may call `reap`
  for (auto copy = copies_.begin(); copy != copies_.end();) {
    const auto next = std::next(copy);
    if (!copy->is_queueing) {
      const bool is_needed =
          copy->destination.is_none() ? !copy->ticket->source_read() : copy->ticket->is_in_flight();
      if (is_needed) break;
      dropped.splice(dropped.end(), copies_, copy);
    }
    copy = next;
  }
}

std::size_t CopiesInFlight::count() const {
  return static_cast<std::size_t>(std::count_if(
      copies_.begin(), copies_.end(), [](const Copy& copy) { return copy.ticket->is_in_flight(); }));
}

}  // namespace vitcache
