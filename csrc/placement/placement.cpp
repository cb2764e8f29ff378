#include "placement/placement.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/cuda_runtime.h"

namespace vitcache {
namespace {

constexpr std::int64_t kVectorBytes = 16;

std::string describe(const Run& run) {
  return "item " + std::to_string(run.item) + " (tokens [" + std::to_string(run.start) + ", " +
         std::to_string(run.start + run.length) + "))";
}

// Sums of the caller's numbers must not overflow, so each field is bounded before anything is added to it.
void check_fields(const Run& run) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 60;
  for (const auto& [name, value] : {std::pair<const char*, std::int64_t>{"start", run.start},
                                    {"length", run.length},
                                    {"source_start", run.source_start}}) {
    if (value < 0)
      throw std::invalid_argument("item " + std::to_string(run.item) + ": span " + name + " is " +
                                  std::to_string(value) + ", it must be at least 0");
    if (value > kLargest)
      throw std::out_of_range("item " + std::to_string(run.item) + ": span " + name + " is " +
                              std::to_string(value) + ", it must be at most " + std::to_string(kLargest));
  }
}

// The bytes of a row of `source`. Throws std::invalid_argument if they have more than 64 bits.
std::int64_t row_bytes_of(const Source& source, std::int64_t width, std::int64_t narrow_width) {
  const std::int64_t elements = source.narrow ? narrow_width : width;
  std::int64_t bytes = 0;
  if (elements < 0 || __builtin_mul_overflow(elements, kElementBytes[source.kind], &bytes))
    throw std::invalid_argument("rows of " + std::to_string(elements) + " elements are too long");
  return bytes;
}

// The bytes of a source, or of the pages that it is stored in: `label` and `item` name it. Throws
// std::invalid_argument if a row lies outside of the address space.
ByteRange range_of(const Source& source, std::int64_t row_bytes, const char* label, std::int64_t item) {
  if (const auto range = source.range(row_bytes)) return *range;
  throw std::invalid_argument(label + std::to_string(item) + " has " + std::to_string(source.num_rows) +
                              " rows, " + std::to_string(source.row_stride) +
                              " bytes apart: they lie outside of the address space");
}

constexpr const char* kItem = "item ";
constexpr const char* kStorage = "the storage of item ";

}  // namespace

void Placement::set_source(std::int64_t item, Source source) {
  if (item < 0) throw std::out_of_range("item " + std::to_string(item) + " is negative");
  if (item >= num_sources()) resize_sources(item + 1);
  sources_[static_cast<std::size_t>(item)] = std::move(source);
}

bool Placement::fit_source(std::int64_t item, Source source, std::int64_t width,
                           const Destination& destination) {
  if (width != destination.width) {
    if (!accepts_narrow_ || width != destination.hidden()) return false;
    source.narrow = true;
  }
  set_source(item, std::move(source));
  return true;
}

void Placement::resize_sources(std::int64_t num_sources) {
  sources_.resize(static_cast<std::size_t>(num_sources), Source::block(0, 0, 0, kFloat32, false));
}

void Placement::add_store(std::int64_t item, Source pages) {
  const std::int64_t num_rows = source_rows(item);
  if (pages.num_rows != num_rows)
    throw std::invalid_argument("item " + std::to_string(item) + " has " + std::to_string(num_rows) +
                                " rows, the pages to store it in have " + std::to_string(pages.num_rows));
  pages.narrow = sources_[static_cast<std::size_t>(item)].narrow;
  stores_.emplace(item, std::move(pages));
}

void Placement::check(const Destination& destination, bool is_overlap_checked) const {
  check_runs(destination.num_tokens);
  check_addresses(destination.width, destination.hidden());
  for (std::size_t plane = 0; plane < destination.planes.size(); ++plane) {
    const auto [begin, end] = destination.extent(plane);
    check_apart(begin, end, destination.planes[plane].row_stride, destination.row_bytes, destination.width,
                destination.hidden());
  }
  if (!is_overlap_checked) check_overlap();
  if (destination.is_packed() && num_placed() != destination.num_packed)
    throw std::invalid_argument("deepstack_rows has " + std::to_string(destination.num_packed) +
                                " rows a level, the call places rows at " + std::to_string(num_placed()) +
                                " tokens");
}

void Placement::check_runs(std::int64_t num_tokens) const {
  for (const Run& run : runs_) {
    if (run.item < 0 || run.item >= static_cast<std::int64_t>(sources_.size()))
      throw std::invalid_argument("a span names item " + std::to_string(run.item) +
                                  ", the number of items is " + std::to_string(sources_.size()));
    check_fields(run);
    if (run.start + run.length > num_tokens)
      throw std::out_of_range(describe(run) + " does not fit in " + std::to_string(num_tokens) + " tokens");
    const std::int64_t num_rows = source_of(run).num_rows;
    if (run.source_start + run.length > num_rows)
      throw std::invalid_argument(describe(run) + " needs rows [" + std::to_string(run.source_start) + ", " +
                                  std::to_string(run.source_start + run.length) + ") but the item has " +
                                  std::to_string(num_rows) + " rows");
  }
}

std::vector<const Run*> Placement::runs_in_order() const {
  std::vector<const Run*> order;
  order.reserve(runs_.size());
  for (const Run& run : runs_)
    if (run.length > 0) order.push_back(&run);
  // Prompts list their images in order, so the sort is rarely needed.
  const auto before = [](const Run* a, const Run* b) { return a->start < b->start; };
  if (!std::is_sorted(order.begin(), order.end(), before))
    std::stable_sort(order.begin(), order.end(), before);
  return order;
}

std::optional<std::pair<Run, Run>> Placement::find_overlap() const {
  const std::vector<const Run*> order = runs_in_order();
  for (std::size_t i = 1; i < order.size(); ++i)
    // The runs may be unchecked, so `start + length` could overflow. The difference of two starts in their
    // order fits into 64 bits without a sign.
    if (static_cast<std::uint64_t>(order[i - 1]->length) >
        static_cast<std::uint64_t>(order[i]->start) - static_cast<std::uint64_t>(order[i - 1]->start))
      return std::pair(*order[i - 1], *order[i]);
  return std::nullopt;
}

void Placement::check_overlap() const {
  if (const auto overlap = find_overlap())
    throw std::invalid_argument(describe(overlap->first) + " and " + describe(overlap->second) + " overlap");
}

template <typename Id>
void Placement::check_text_ids(const Id* ids, std::int64_t num_tokens, std::int64_t num_rows) const {
  check_tokens(num_tokens);
  std::int64_t token = 0;
  const auto check_up_to = [&](std::int64_t end) {
    for (; token < end; ++token)
      if (ids[token] < 0 || ids[token] >= num_rows)
        throw std::out_of_range("input_ids[" + std::to_string(token) + "] is " + std::to_string(ids[token]) +
                                ", the weight has " + std::to_string(num_rows) + " rows");
  };
  for (const Run* run : runs_in_order()) {
    check_up_to(run->start);
    token = run->start + run->length;
  }
  check_up_to(num_tokens);
}

template void Placement::check_text_ids(const std::int32_t*, std::int64_t, std::int64_t) const;
template void Placement::check_text_ids(const std::int64_t*, std::int64_t, std::int64_t) const;

void Placement::check_text_ids(const TextTokens& text, std::int64_t num_tokens) const {
  text.visit_ids([&](const auto* ids) { check_text_ids(ids, num_tokens, text.num_embeddings); });
}

void Placement::read_stores() {
  for (auto& [item, pages] : stores_) sources_[static_cast<std::size_t>(item)] = std::move(pages);
  stores_.clear();
}

void Placement::check_addresses(std::int64_t width, std::int64_t narrow_width) const {
  const auto check = [&](const Source& source, const char* label, std::int64_t item) {
    range_of(source, row_bytes_of(source, width, narrow_width), label, item);
  };
  for (std::size_t item = 0; item < sources_.size(); ++item)
    check(sources_[item], kItem, static_cast<std::int64_t>(item));
  for (const auto& [item, pages] : stores_) check(pages, kStorage, item);
}

void Placement::check_apart(std::uint64_t begin, std::uint64_t end, std::int64_t row_stride,
                            std::int64_t row_bytes, std::int64_t width, std::int64_t narrow_width) const {
  const auto check = [&](std::int64_t item, const Source& source, const char* label) {
    const std::int64_t source_bytes = row_bytes_of(source, width, narrow_width);
    const ByteRange range = range_of(source, source_bytes, label, item);
    if (range.is_apart({begin, end})) return;
    if (source.row_stride == row_stride && row_stride > row_bytes && source_bytes <= row_stride) {
      // Source and destination have the same pitch: they are apart if their rows do not overlap within one
      // pitch.
      const auto pitch = static_cast<std::uint64_t>(row_stride);
      const std::uint64_t offset = range.begin >= begin ? (range.begin - begin) % pitch
                                                        : (pitch - (begin - range.begin) % pitch) % pitch;
      if (offset >= static_cast<std::uint64_t>(row_bytes) &&
          offset <= pitch - static_cast<std::uint64_t>(source_bytes))
        return;
    }
    throw std::invalid_argument(label + std::to_string(item) + " shares memory with the destination");
  };
  for (std::size_t item = 0; item < sources_.size(); ++item)
    check(static_cast<std::int64_t>(item), sources_[item], kItem);
  for (const auto& [item, pages] : stores_) check(item, pages, kStorage);
}

void Placement::check_stores_apart(std::int64_t width, std::int64_t narrow_width) const {
  // Few sources overlap the bytes from the lowest to the highest page that is written, so most are skipped
  // early.
  ByteRange written{UINT64_MAX, 0};
  for (const auto& [item, pages] : stores_) {
    const ByteRange range = range_of(pages, row_bytes_of(pages, width, narrow_width), kStorage, item);
    if (range.empty()) continue;
    written = {std::min(written.begin, range.begin), std::max(written.end, range.end)};
  }
  if (written.begin >= written.end) return;
  for (std::size_t item = 0; item < sources_.size(); ++item) {
    const Source& source = sources_[item];
    if (source.num_rows == 0 || source.pages != nullptr) continue;  // entries never share a page
    const ByteRange range =
        range_of(source, row_bytes_of(source, width, narrow_width), kItem, static_cast<std::int64_t>(item));
    if (range.is_apart(written)) continue;
    for (const auto& store : stores_) {
      const std::int64_t stored_item = store.first;  // a lambda of C++17 cannot capture a structured binding
      const Source& pages = store.second;
      const std::int64_t page_bytes = row_bytes_of(pages, width, narrow_width);
      pages.visit_parts(0, pages.num_rows, [&](std::int64_t address, std::int64_t count) {
        const auto rows =
            rows_range(static_cast<std::uint64_t>(address), pages.row_stride, count, page_bytes);
        if (!rows || !rows->is_apart(range))
          throw std::invalid_argument("item " + std::to_string(item) +
                                      " shares memory with the storage of item " +
                                      std::to_string(stored_item));
      });
    }
  }
}

namespace {

// The bytes from which on a copy engine copies rows of `source` to `destination`; none: a kernel reads them.
std::optional<std::int64_t> copied_bytes(const Source& source, const Destination& destination,
                                         const CopyThresholds& thresholds) {
  const std::int64_t row_bytes = destination.row_bytes;
  if (!source.on_host || source.narrow || source.kind != destination.kind || row_bytes == 0)
    return std::nullopt;
  const auto has_pitch = [](std::int64_t stride, std::int64_t width) {
    return stride >= width && stride <= static_cast<std::int64_t>(CudaRuntime::kMaxPitch);
  };
  const auto num_planes = static_cast<std::int64_t>(destination.planes.size());
  if (num_planes == 1 && source.row_stride == row_bytes && destination.planes[0].row_stride == row_bytes)
    return thresholds.block;
  if (row_bytes < thresholds.row_width || !has_pitch(source.row_stride, num_planes * row_bytes) ||
      !std::all_of(
          destination.planes.begin(), destination.planes.end(),
          [&](const Plane& plane) { return has_pitch(plane.row_stride, row_bytes); }))
    return std::nullopt;
  return thresholds.rows;
}

}  // namespace

const std::vector<BlockCopy>& Placement::take_host_blocks(const Destination& destination,
                                                          const CopyThresholds& thresholds) {
  const std::vector<std::int64_t> ranks =
      destination.is_packed() ? first_ranks() : std::vector<std::int64_t>(runs_.size());
  std::vector<Run> remaining;
  remaining.reserve(runs_.size());
  const auto leave = [&](const Run& run, std::int64_t rank) {
    remaining.push_back(run);
    taken_ranks_.push_back(rank);
  };
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const Source& source = source_of(run);
    const std::optional<std::int64_t> min_bytes =
        is_stored(run.item) ? std::nullopt : copied_bytes(source, destination, thresholds);
    if (!min_bytes) {
      leave(run, ranks[i]);
      continue;
    }
    for (std::int64_t row = 0; row < run.length;) {
      const std::int64_t first = source.pool_row(run.source_start + row);
      std::int64_t length = 1;
      while (row + length < run.length && source.pool_row(run.source_start + row + length) == first + length)
        ++length;
      if (length * destination.row_bytes >= *min_bytes)
        blocks_.push_back({run.item, first, run.start + row, length, ranks[i] + row});
      else
        leave({run.item, run.start + row, length, run.source_start + row}, ranks[i] + row);
      row += length;
    }
  }
  runs_ = std::move(remaining);
  return blocks_;
}

std::vector<std::int64_t> Placement::first_ranks() const {
  if (!blocks_.empty()) return taken_ranks_;
  std::vector<std::int64_t> ranks(runs_.size());
  std::int64_t rank = 0;
  for (const Run* run : runs_in_order()) {
    ranks[static_cast<std::size_t>(run - runs_.data())] = rank;
    rank += run->length;
  }
  return ranks;
}

std::int64_t Placement::num_placed() const {
  std::int64_t rows = 0;
  for (const Run& run : runs_) rows += run.length;
  return rows;
}

std::int64_t Placement::num_rows(int kind) const {
  std::int64_t rows = 0;
  for (const Run& run : runs_)
    if (source_of(run).kind == kind) rows += run.length;
  return rows;
}

bool Placement::places_only(int kind) const {
  return std::all_of(runs_.begin(), runs_.end(),
                     [&](const Run& run) { return run.length == 0 || source_of(run).kind == kind; });
}

bool Placement::stores(int kind) const {
  return std::any_of(stores_.begin(), stores_.end(), [this, kind](const auto& store) {
    return sources_[static_cast<std::size_t>(store.first)].kind == kind && store.second.num_rows > 0;
  });
}

std::int64_t Placement::num_unplaced_rows(int kind) const {
  if (!stores(kind)) return 0;
  std::int64_t rows = 0;
  visit_stored(kind, false, [&rows](const StoredRow& row) { rows += row.token == kNoToken; });
  return rows;
}

bool Placement::reads_host() const {
  return std::any_of(sources_.begin(), sources_.end(), [](const Source& source) { return source.on_host; });
}

bool Placement::has_narrow(int kind) const {
  const auto is_narrow = [kind](const Source& source) { return source.narrow && source.kind == kind; };
  return std::any_of(runs_.begin(), runs_.end(),
                     [&](const Run& run) { return run.length > 0 && is_narrow(source_of(run)); }) ||
         std::any_of(stores_.begin(), stores_.end(), [&](const auto& store) {
           return store.second.num_rows > 0 && is_narrow(sources_[static_cast<std::size_t>(store.first)]);
         });
}

bool Placement::aligned(int kind) const {
  const auto is_aligned = [](const Source& source) {
    return source.num_rows == 0 ||
           (source.address % kVectorBytes == 0 && source.row_stride % kVectorBytes == 0);
  };
  return std::all_of(runs_.begin(), runs_.end(),
                     [&](const Run& run) {
                       const Source& source = source_of(run);
                       return source.kind != kind || run.length == 0 || is_aligned(source);
                     }) &&
         std::all_of(stores_.begin(), stores_.end(), [&](const auto& store) {
           const Source& source = sources_[static_cast<std::size_t>(store.first)];
           return source.kind != kind || (is_aligned(source) && is_aligned(store.second));
         });
}

void Placement::write_row_table(int kind, std::int64_t* table, bool has_ranks) const {
  if (has_ranks)
    write_rows<true>(kind, table);
  else
    write_rows<false>(kind, table);
}

template <bool kHasRanks>
void Placement::write_rows(int kind, std::int64_t* table) const {
  constexpr std::int64_t kColumns = kHasRanks ? 3 : 2;
  const std::vector<std::int64_t> ranks = kHasRanks ? first_ranks() : std::vector<std::int64_t>();
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const Source& source = source_of(run);
    if (source.kind != kind) continue;
    std::int64_t token = run.start, rank = kHasRanks ? ranks[i] : 0;
    source.visit_parts(run.source_start, run.length, [&](std::int64_t first, std::int64_t count) {
      const auto stride = static_cast<std::uint64_t>(source.row_stride);
      auto address = static_cast<std::uint64_t>(source.marked(first));
      for (std::int64_t* const end = table + kColumns * count; table != end; table += kColumns) {
        table[0] = static_cast<std::int64_t>(address);
        table[1] = token++;
        if constexpr (kHasRanks) table[2] = rank++;
        address += stride;
      }
    });
  }
}

void Placement::write_token_table(int kind, std::int64_t* table, std::int64_t num_tokens,
                                  bool has_ranks) const {
  check_tokens(num_tokens);
  if (has_ranks)
    write_tokens<true>(kind, table, num_tokens);
  else
    write_tokens<false>(kind, table, num_tokens);
}

template <bool kHasRanks>
void Placement::write_tokens(int kind, std::int64_t* table, std::int64_t num_tokens) const {
  constexpr std::int64_t kColumns = kHasRanks ? 2 : 1;
  const std::vector<std::int64_t> ranks = kHasRanks ? first_ranks() : std::vector<std::int64_t>();
  std::fill(table, table + kColumns * num_tokens, std::int64_t{0});
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const Source& source = source_of(run);
    std::int64_t* value = table + kColumns * run.start;
    std::int64_t rank = kHasRanks ? ranks[i] : 0;
    if (source.kind != kind) {
      for (std::int64_t* const end = value + kColumns * run.length; value != end; value += kColumns)
        *value = kOtherKind;
      continue;
    }
    source.visit_parts(run.source_start, run.length, [&](std::int64_t first, std::int64_t count) {
      const auto stride = static_cast<std::uint64_t>(source.row_stride);
      auto address = static_cast<std::uint64_t>(source.marked(first));
      for (std::int64_t* const end = value + kColumns * count; value != end; value += kColumns) {
        value[0] = static_cast<std::int64_t>(address);
        if constexpr (kHasRanks) value[1] = rank++;
        address += stride;
      }
    });
  }
  for (const BlockCopy& block : blocks_)
    for (std::int64_t row = 0; row < block.num_rows; ++row)
      table[kColumns * (block.token + row)] = kOtherKind;
}

void Placement::write_stored_row_table(int kind, std::int64_t* table, bool has_ranks) const {
  visit_stored(kind, has_ranks, [&table, has_ranks](const StoredRow& row) {
    *table++ = row.address;
    *table++ = row.token;
    *table++ = row.page;
    if (has_ranks) *table++ = row.rank;
  });
}

void Placement::write_stored_token_table(int kind, std::int64_t* table, std::int64_t num_tokens,
                                         bool has_ranks) const {
  check_tokens(num_tokens);
  const std::int64_t columns = has_ranks ? 3 : 2;
  std::fill(table, table + columns * num_tokens, std::int64_t{0});
  for (const Run& run : runs_)
    for (std::int64_t row = 0; row < run.length; ++row) table[columns * (run.start + row)] = kOtherKind;
  for (const BlockCopy& block : blocks_)
    for (std::int64_t row = 0; row < block.num_rows; ++row) table[columns * (block.token + row)] = kOtherKind;
  std::int64_t next_unplaced = num_tokens;
  visit_stored(kind, has_ranks, [&](const StoredRow& row) {
    std::int64_t* const value = table + columns * (row.token == kNoToken ? next_unplaced++ : row.token);
    value[0] = row.address;
    value[1] = row.page;
    if (has_ranks) value[2] = row.rank;
  });
}

void Placement::check_tokens(std::int64_t num_tokens) const {
  for (const Run& run : runs_)
    if (run.start + run.length > num_tokens)
      throw std::out_of_range(describe(run) + " does not fit in a table of " + std::to_string(num_tokens) +
                              " tokens");
  for (const BlockCopy& block : blocks_)
    if (block.token + block.num_rows > num_tokens)
      throw std::out_of_range("tokens up to " + std::to_string(block.token + block.num_rows) +
                              " do not fit in a table of " + std::to_string(num_tokens) + " tokens");
}

template <typename Visit>
void Placement::visit_stored(int kind, bool has_ranks, Visit visit) const {
  const std::vector<std::int64_t> ranks = has_ranks ? first_ranks() : std::vector<std::int64_t>();
  // By item, the rows whose page was already visited: several spans may name one row.
  std::map<std::int64_t, std::vector<bool>> visited;
  for (const auto& [item, pages] : stores_)
    if (sources_[static_cast<std::size_t>(item)].kind == kind)
      visited.emplace(item, std::vector<bool>(static_cast<std::size_t>(pages.num_rows)));
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const Source& source = source_of(run);
    if (source.kind != kind) continue;
    const std::int64_t first_rank = has_ranks ? ranks[i] : 0;
    const auto found = visited.find(run.item);
    const Source* pages = found == visited.end() ? nullptr : &stores_.at(run.item);
    for (std::int64_t row = 0; row < run.length; ++row) {
      const std::int64_t number = run.source_start + row;
      std::int64_t page = kNoPage;
      if (pages != nullptr) {
        std::vector<bool>::reference is_visited = found->second[static_cast<std::size_t>(number)];
        page = is_visited ? kStoredElsewhere : pages->row_address(number);
        is_visited = true;
      }
      visit(StoredRow{source.marked(source.row_address(number)), run.start + row, page,
                      has_ranks ? first_rank + row : 0});
    }
  }
  for (const auto& [item, is_visited] : visited) {
    const Source& source = sources_[static_cast<std::size_t>(item)];
    const Source& pages = stores_.at(item);
    for (std::int64_t row = 0; row < pages.num_rows; ++row)
      if (!is_visited[static_cast<std::size_t>(row)])
        visit(StoredRow{source.marked(source.row_address(row)), kNoToken, pages.row_address(row), 0});
  }
}

}  // namespace vitcache
