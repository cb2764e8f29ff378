#include "cache/lru.h"

namespace vitcache {

void Lru::insert(PolicyNode& node, std::int64_t /*pages*/, double /*cost*/) { queue_.append(node); }

void Lru::touch(PolicyNode& node) {
  queue_.remove(node);
  queue_.append(node);
}

void Lru::remove(PolicyNode& node) { queue_.remove(node); }

void Lru::evict(PolicyNode& node) { queue_.remove(node); }

bool Lru::is_worth_copy(const PolicyNode& /*node*/) const { return true; }

PolicyNode* Lru::first_victim() const { return queue_.first(); }

PolicyNode* Lru::next_victim(const PolicyNode& node) const { return node.next; }

}  // namespace vitcache
