#include "pipeline/window.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

namespace vitcache {
namespace {

// The windows that are not empty, in the order of their tokens in the batch.
std::vector<std::size_t> order_of(const std::vector<Window>& windows) {
  std::vector<std::size_t> order;
  order.reserve(windows.size());
  for (std::size_t chunk = 0; chunk < windows.size(); ++chunk)
    if (windows[chunk].length > 0) order.push_back(chunk);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::tie(windows[a].token_offset, a) < std::tie(windows[b].token_offset, b);
  });
  return order;
}

bool are_in_order(const std::vector<Window>& windows) {
  std::int64_t end = 0;
  for (const Window& window : windows) {
    if (window.length == 0) continue;
    if (window.token_offset < end) return false;
    end = window.token_offset + window.length;
  }
  return true;
}

}  // namespace

std::string describe_misfit(std::size_t chunk, const std::string& offset, const std::string& end,
                            std::int64_t num_tokens) {
  return "chunk " + std::to_string(chunk) + " covers tokens [" + offset + ", " + end +
         ") of the batch, which has " + std::to_string(num_tokens) + " tokens";
}

void check_fit(const std::vector<Window>& windows, std::int64_t num_tokens) {
  for (std::size_t chunk = 0; chunk < windows.size(); ++chunk) {
    const std::int64_t offset = windows[chunk].token_offset;
    const std::int64_t end = offset + windows[chunk].length;
    if (end > num_tokens)
      throw std::out_of_range(
          describe_misfit(chunk, std::to_string(offset), std::to_string(end), num_tokens));
  }
}

void check_apart(const std::vector<Window>& windows) {
  if (are_in_order(windows)) return;  // usual, and needs no sort
  const std::vector<std::size_t> order = order_of(windows);
  for (std::size_t i = 1; i < order.size(); ++i) {
    const Window& window = windows[order[i - 1]];
    const std::int64_t end = window.token_offset + window.length;
    const std::int64_t next = windows[order[i]].token_offset;
    if (end > next)
      throw std::invalid_argument("chunks overlap: chunk " + std::to_string(order[i - 1]) +
                                  " covers tokens [" + std::to_string(window.token_offset) + ", " +
                                  std::to_string(end) + ") of the batch, chunk " + std::to_string(order[i]) +
                                  " begins at token " + std::to_string(next));
  }
}

}  // namespace vitcache
