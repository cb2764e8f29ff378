// Copies of rows on the CPU, and the blocks of a copy engine, against one copy per row and plane. Every plane
// and every source is a heap block of its own, without a byte to spare.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "fuzz.h"
#include "fuzz_placement.h"
#include "placement/copy_engine.h"
#include "placement/destination.h"
#include "placement/placement.h"
#include "placement/row_copy.h"

namespace fuzz {
namespace {

using vitcache::Destination;
using vitcache::kElementBytes;
using vitcache::Placement;
using vitcache::Run;
using vitcache::Source;
using Bytes = std::vector<std::byte>;
using Planes = std::vector<Bytes>;

Bytes some_bytes(Random& random, std::int64_t count) {
  Bytes bytes(static_cast<std::size_t>(count));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.bits());
  return bytes;
}

std::int64_t block_bytes(std::int64_t num_rows, std::int64_t stride, std::int64_t row_bytes) {
  return num_rows == 0 ? 0 : (num_rows - 1) * stride + row_bytes;
}

// The stride of at most one row may be any number. Else the rows have a gap, or none.
std::int64_t some_stride(Random& random, std::int64_t row_bytes, std::int64_t num_rows, int kind) {
  if (num_rows < 2 && random.one_in(3)) return random.number(64, 1);
  return row_bytes + random.up_to(2) * kElementBytes[kind];
}

// The memory of a call, and the placement and destination that describe it.
struct Scene {
  Destination destination{};
  Planes planes;
  std::vector<Bytes> memory;  // of the sources
  Placement placement;
  Numbers rows;
  std::vector<Run> runs;

  std::int64_t level_row(std::int64_t token) const {
    return destination.is_packed() ? rank_of(runs, token) : token;
  }
  std::byte* row(std::size_t plane, std::int64_t token) {
    return planes[plane].data() +
           (plane == 0 ? token : level_row(token)) * destination.planes[plane].row_stride;
  }
  Destination at(Planes& written) const {
    Destination other = destination;
    for (std::size_t plane = 0; plane < written.size(); ++plane)
      other.planes[plane].base = written[plane].data();
    return other;
  }
};

void add_source(Random& random, Scene& scene) {
  const Destination& destination = scene.destination;
  const bool is_narrow = scene.destination.width > destination.hidden() && random.one_in(4);
  const std::int64_t bytes =
      (is_narrow ? destination.hidden() : destination.width) * kElementBytes[destination.kind];
  const bool is_paged = random.one_in(2);
  const std::int64_t num_rows = random.up_to(9);
  const std::int64_t stride = some_stride(random, bytes, is_paged ? 2 : num_rows, destination.kind);
  const bool on_host = !random.one_in(3);
  if (!is_paged) {
    scene.memory.push_back(some_bytes(random, block_bytes(num_rows, stride, bytes)));
    const auto address = reinterpret_cast<std::uintptr_t>(scene.memory.back().data());
    scene.placement.add_source(Source::block(address, stride, num_rows, destination.kind, on_host));
  } else {
    const std::int64_t page_rows = 1 + random.up_to(3), pool = (num_rows + page_rows - 1) / page_rows + 2;
    Numbers pages;
    for (std::int64_t page = 0; page < pool; ++page) pages.insert(pages.begin() + random.up_to(page), page);
    pages.resize(static_cast<std::size_t>(pool - 2));
    scene.memory.push_back(some_bytes(random, block_bytes(pool * page_rows, stride, bytes)));
    const auto address = reinterpret_cast<std::uintptr_t>(scene.memory.back().data());
    scene.placement.add_source(
        Source::paged(address, stride, num_rows, destination.kind, on_host, pages, page_rows));
  }
  scene.rows.push_back(num_rows);
  if (is_narrow) scene.placement.mark_narrow(scene.placement.num_sources() - 1);
}

void build(Random& random, Scene& scene) {
  const auto kind = static_cast<int>(random.up_to(2));
  // In one of 3,000 scenes the rows are so long that several threads copy, past the CPU's caches.
  const std::int64_t hidden = random.one_in(3000) ? 1 << 18 : random.up_to(7), levels = random.up_to(2);
  const std::int64_t row_bytes = hidden * kElementBytes[kind];
  scene.destination = {{}, random.up_to(24), row_bytes, hidden * (1 + levels), kind, false, 0};
  for (std::int64_t count = random.up_to(4); count > 0; --count) add_source(random, scene);
  scene.runs = some_runs(random, scene.rows, scene.destination.num_tokens);
  scene.placement.set_runs(scene.runs);
  const bool is_valid = are_valid(scene.runs, scene.rows, scene.destination.num_tokens);
  if (levels > 0 && random.one_in(2))
    scene.destination.num_packed = is_valid && !random.one_in(10) ? num_placed(scene.runs) : random.up_to(9);
  for (std::int64_t plane = 0; plane <= levels; ++plane) {
    const std::int64_t num_rows = plane > 0 && scene.destination.is_packed() ? scene.destination.num_packed
                                                                             : scene.destination.num_tokens;
    const std::int64_t stride = some_stride(random, row_bytes, num_rows, kind);
    scene.planes.push_back(some_bytes(random, block_bytes(num_rows, stride, row_bytes)));
    scene.destination.planes.push_back({scene.planes.back().data(), stride});
  }
}

void place(Scene& scene) {
  if (scene.destination.row_bytes == 0) return;
  const auto bytes = static_cast<std::size_t>(scene.destination.row_bytes);
  for (const Run& run : scene.runs)
    for (std::int64_t row = 0; row < run.length; ++row)
      for (std::size_t plane = 0; plane < scene.planes.size(); ++plane) {
        const Source& source = scene.placement.sources()[static_cast<std::size_t>(run.item)];
        const auto* from = reinterpret_cast<const std::byte*>(source.row_address(run.source_start + row));
        std::byte* const to = scene.row(plane, run.start + row);
        if (source.narrow && plane > 0)
          std::memset(to, 0, bytes);
        else
          std::memcpy(to, from + plane * bytes, bytes);
      }
}

void check_blocks(Random& random, const Scene& scene, Planes written, const Planes& expected) {
  Placement placement = scene.placement;
  const Destination destination = scene.at(written);
  const auto some_bytes_from = [&] { return random.pick<std::int64_t>({1, 24, 60, 1 << 20}); };
  const auto& blocks =
      placement.take_host_blocks(destination, {some_bytes_from(), some_bytes_from(), some_bytes_from()});
  for (const vitcache::RowsCopy& copy : vitcache::copies_of(blocks, placement, destination))
    for (std::size_t row = 0; row < copy.num_rows; ++row)
      std::memcpy(copy.destination + row * copy.stride, copy.source + row * copy.source_stride,
                  copy.row_bytes);
  vitcache::scatter_rows(placement, destination, 2);
  CHECK(written == expected);
}

// Text tokens get a row of the weight. Returns whether the ids were accepted.
bool check_embed(Random& random, Scene& scene, Planes written) {
  const Destination& destination = scene.destination;
  const std::int64_t num_embeddings = 1 + random.up_to(5),
                     stride = destination.row_bytes + kElementBytes[destination.kind] * random.up_to(2);
  const Bytes weight = some_bytes(random, block_bytes(num_embeddings, stride, destination.row_bytes));
  std::vector<std::int64_t> ids;
  for (std::int64_t token = 0; token < destination.num_tokens; ++token)
    ids.push_back(random.number(num_embeddings - 1, 200));
  const vitcache::TextTokens text{ids.data(), 8, weight.data(), stride, num_embeddings, destination.kind};
  if (!is_accepted([&] { scene.placement.check_text_ids(text, destination.num_tokens); })) return false;
  Planes before = scene.planes;
  const auto bytes = static_cast<std::size_t>(destination.row_bytes);
  for (std::int64_t token = 0; token < destination.num_tokens && bytes > 0; ++token) {
    if (rank_of(scene.runs, token + 1) > rank_of(scene.runs, token)) continue;
    std::memcpy(scene.row(0, token), weight.data() + ids[static_cast<std::size_t>(token)] * stride, bytes);
    for (std::size_t plane = 1; plane < scene.planes.size() && !destination.is_packed(); ++plane)
      std::memset(scene.row(plane, token), 0, bytes);
  }
  vitcache::embed_rows(scene.placement, scene.at(written), text, 3);
  CHECK(written == scene.planes);
  scene.planes = std::move(before);
  return true;
}

}  // namespace

Verdict placement_copies(Random& random) {
  Scene scene;
  build(random, scene);
  const bool is_wrong =
      !are_valid(scene.runs, scene.rows, scene.destination.num_tokens) || overlap(scene.runs) ||
      (scene.destination.is_packed() && num_placed(scene.runs) != scene.destination.num_packed);
  CHECK_EQUAL(is_accepted([&] { scene.placement.check(scene.destination, false); }), !is_wrong);
  if (is_wrong) return Verdict::kRefused;
  const Planes before = scene.planes;
  Planes written = before;
  place(scene);
  vitcache::scatter_rows(scene.placement, scene.at(written), static_cast<int>(1 + random.up_to(2)));
  CHECK(written == scene.planes);
  check_blocks(random, scene, before, scene.planes);
  return check_embed(random, scene, before) ? Verdict::kAccepted : Verdict::kRefused;
}

}  // namespace fuzz
