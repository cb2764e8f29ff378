#include "fuzz_input.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "check.h"

namespace fuzz {
namespace {

using vitcache::Destination;
using vitcache::kElementBytes;
using vitcache::Source;

// Addresses are even, and many of them close together, so that some of the rows share bytes.
std::uint64_t some_address(Random& random) {
  if (random.one_in(60)) return random.bits() & ~std::uint64_t{1};
  return static_cast<std::uint64_t>(random.one_in(8) ? 2 * random.up_to(800)
                                                     : 4096 * (1 + random.up_to(1000)));
}

std::int64_t some_stride(Random& random, std::int64_t row_bytes) {
  if (random.one_in(60)) return 2 * (random.number(64, 1) / 2);
  return row_bytes + 2 * random.up_to(random.one_in(2) ? 0 : 12);
}

// None if `Source::paged` refuses the pages, which only hostile ones are.
std::optional<Source> some_pages(Random& random, std::int64_t num_rows, std::int64_t stride, int kind) {
  const std::int64_t page_rows = random.one_in(100) ? random.number(4, 1) : 1 + random.up_to(3);
  Numbers pages;
  for (std::int64_t rows = 0; rows < num_rows && pages.size() < 20;
       rows += std::clamp<std::int64_t>(page_rows, 1, 16))
    pages.push_back(random.number(9, 150));
  bool is_valid = page_rows > 0 && num_rows >= 0 && static_cast<Wide>(pages.size()) * page_rows >= num_rows;
  for (const std::int64_t page : pages)
    is_valid =
        is_valid && page >= 0 && (Wide{page} + 1) * page_rows <= std::numeric_limits<std::int64_t>::max();
  std::optional<Source> source;
  const std::uint64_t address = some_address(random);
  CHECK_EQUAL(
      is_accepted([&] { source = Source::paged(address, stride, num_rows, kind, false, pages, page_rows); }),
      is_valid);
  return source;
}

std::optional<Source> some_source(Random& random, const Destination& destination) {
  const auto kind = static_cast<int>(random.one_in(3) ? random.up_to(2) : destination.kind);
  const bool is_narrow = !destination.planes.empty() && random.one_in(4);
  const std::int64_t row_bytes =
      (is_narrow ? destination.hidden() : std::clamp<std::int64_t>(destination.width, 0, 64)) *
      kElementBytes[kind];
  const std::int64_t num_rows = random.number(10, 120), stride = some_stride(random, row_bytes);
  std::optional<Source> source =
      Source::block(some_address(random), stride, num_rows, kind, random.one_in(2));
  if (random.one_in(3)) source = some_pages(random, num_rows, stride, kind);
  if (source) source->narrow = is_narrow;
  return source;
}

}  // namespace

std::optional<Input> some_input(Random& random) {
  const auto kind = static_cast<int>(random.up_to(2));
  const std::int64_t hidden = 1 + random.up_to(7), levels = random.up_to(2),
                     row_bytes = hidden * kElementBytes[kind];
  const std::int64_t width = random.one_in(200) ? random.number(8, 1) : hidden * (1 + levels);
  Input input{
      {{}, std::max<std::int64_t>(0, random.number(40, 40)), row_bytes, width, kind, false, 0}, {}, {}, {}};
  for (std::int64_t plane = random.one_in(2) ? levels : -1; plane >= 0; --plane)
    input.destination.planes.push_back(
        {reinterpret_cast<std::byte*>(some_address(random)), some_stride(random, row_bytes)});
  Numbers rows;
  for (std::int64_t count = random.up_to(4); count > 0; --count) {
    const std::optional<Source> source = some_source(random, input.destination);
    if (!source) return std::nullopt;
    input.sources.push_back(*source);
    rows.push_back(source->num_rows);
  }
  input.runs = some_runs(random, rows, input.destination.num_tokens);
  if (random.one_in(3)) {
    const bool is_valid = are_valid(input.runs, rows, input.destination.num_tokens) && !random.one_in(8);
    input.destination.num_packed = is_valid ? num_placed(input.runs) : random.up_to(20);
  }
  for (std::size_t item = 0; item < input.sources.size(); ++item) {
    const Source& source = input.sources[item];
    if (!random.one_in(4) || source.num_rows < 0 || source.num_rows > kMostRows) continue;
    const auto store_kind = static_cast<int>(random.up_to(2));
    std::optional<Source> pages = some_pages(random, source.num_rows, 64 + 2 * random.up_to(4), store_kind);
    if (!pages) return std::nullopt;
    pages->narrow = source.narrow;
    input.stores.emplace(static_cast<std::int64_t>(item), *pages);
  }
  return input;
}

namespace {

// The bytes from the first to the last of rows [first, last], or none if they leave 64 bits.
std::optional<std::pair<Wide, Wide>> bytes_of(Wide address, Wide stride, Wide first, Wide last,
                                              Wide row_bytes) {
  if (last < first || row_bytes == 0) return std::pair<Wide, Wide>{0, 0};
  constexpr Wide kMost = std::numeric_limits<std::int64_t>::max();
  const auto fits = [](Wide value) { return value >= -kMost - 1 && value <= kMost; };
  if (!fits(first * stride) || !fits((last - first) * stride)) return std::nullopt;
  const Wide a = address + first * stride, b = a + (last - first) * stride;
  if (std::min(a, b) < 0 || std::max(a, b) + row_bytes > std::numeric_limits<std::uint64_t>::max())
    return std::nullopt;
  return std::pair<Wide, Wide>{std::min(a, b), std::max(a, b) + row_bytes};
}

bool meet(const std::pair<Wide, Wide>& a, const std::pair<Wide, Wide>& b) {
  return a.first < b.second && b.first < a.second;
}

void judge_memory(const Source& source, const Input& input, Judgement& judgement) {
  const Destination& destination = input.destination;
  const Wide elements = source.narrow ? destination.hidden() : destination.width;
  const Wide row_bytes = elements * kElementBytes[source.kind];
  if (elements < 0 || row_bytes > std::numeric_limits<std::int64_t>::max())
    return void(judgement.is_wrong = true);
  if (source.num_rows == 0) return;
  const auto range = source.num_rows < 0 ? std::nullopt
                                         : bytes_of(source.address, source.row_stride, source.first_pool_row,
                                                    source.last_pool_row, row_bytes);
  if (!range) return void(judgement.is_wrong = true);
  for (std::size_t plane = 0; plane < destination.planes.size(); ++plane) {
    const vitcache::Plane& written = destination.planes[plane];
    const std::int64_t num_rows =
        plane > 0 && destination.is_packed() ? destination.num_packed : destination.num_tokens;
    const auto base = reinterpret_cast<std::uintptr_t>(written.base);
    const auto plane_range =
        num_rows < 0 ? std::nullopt
                     : bytes_of(base, written.row_stride, 0, Wide{num_rows} - 1, destination.row_bytes);
    if (!plane_range) return void(judgement.is_wrong = true);
    if (!meet(*range, *plane_range)) continue;
    judgement.may_be_refused = true;
    for (std::int64_t row = 0; row < std::min(source.num_rows, kMostRows); ++row)
      for (std::int64_t token = 0; token < std::min(num_rows, kMostRows); ++token) {
        const Wide read = static_cast<std::uint64_t>(source.row_address(row)),
                   begin = Wide{base} + Wide{token} * written.row_stride;
        if (meet({read, read + row_bytes}, {begin, begin + destination.row_bytes})) judgement.is_wrong = true;
      }
  }
}

}  // namespace

Judgement judge(const Input& input) {
  Judgement judgement;
  Numbers rows;
  for (const Source& source : input.sources) rows.push_back(source.num_rows);
  const Destination& destination = input.destination;
  judgement.is_wrong = !are_valid(input.runs, rows, destination.num_tokens) || overlap(input.runs);
  if (judgement.is_wrong) return judgement;
  judgement.is_wrong = destination.is_packed() && num_placed(input.runs) != destination.num_packed;
  for (std::size_t plane = 0; plane < destination.planes.size(); ++plane)
    if (!is_accepted([&] { destination.range(plane); })) judgement.is_wrong = true;
  for (const Source& source : input.sources) judge_memory(source, input, judgement);
  for (const auto& store : input.stores) judge_memory(store.second, input, judgement);
  return judgement;
}

}  // namespace fuzz
