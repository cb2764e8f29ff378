#include "cache/policy.h"

#include <stdexcept>

#include "cache/cost_aware.h"
#include "cache/lru.h"
#include "cache/s3fifo.h"

namespace vitcache {

std::unique_ptr<Policy> make_policy(const std::string& name, std::int64_t capacity_pages) {
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "s3fifo") return std::make_unique<S3Fifo>(capacity_pages);
  if (name == "cost") return std::make_unique<CostAware>(capacity_pages);
  throw std::invalid_argument("policy is '" + name + "', it must be one of 'lru', 's3fifo', 'cost'");
}

}  // namespace vitcache
