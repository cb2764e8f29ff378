// Placement and row copies. Each buffer is its own heap block, so that AddressSanitizer reports an overrun.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "placement/placement.h"
#include "placement/row_copy.h"

namespace {

using vitcache::kBfloat16;
using vitcache::kFloat32;
using vitcache::Placement;
using vitcache::Plane;
using vitcache::Source;
using Row = std::vector<std::int64_t>;

constexpr std::int64_t kElements = 4;
constexpr std::int64_t kRowBytes = kElements * static_cast<std::int64_t>(sizeof(float));

// Every element of row `r` is `first + r`.
std::vector<float> numbered_rows(std::int64_t count, float first) {
  std::vector<float> rows;
  for (std::int64_t row = 0; row < count; ++row)
    rows.insert(rows.end(), kElements, first + static_cast<float>(row));
  return rows;
}

std::uint64_t address_of(const std::vector<float>& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data());
}

Plane plane_of(std::vector<float>& rows, std::int64_t row_stride = kRowBytes) {
  return {reinterpret_cast<std::byte*>(rows.data()), row_stride};
}

Row row_table(const Placement& placement, int kind) {
  Row table(static_cast<std::size_t>(2 * placement.num_rows(kind)));
  placement.write_row_table(kind, table.data());
  return table;
}

void row_table_contains_each_placed_row_at_its_page_address() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 5, kFloat32, false));
  placement.add_source(Source::paged(2000, 16, 5, kFloat32, false, {3, 1, 0}, 2));
  placement.add_source(Source::block(4000, 32, 9, kBfloat16, false));
  placement.add_run({0, 7, 2, 3});
  placement.add_run({1, 0, 4, 1});
  placement.add_run({2, 20, 1, 8});
  placement.check_runs(21);
  placement.check_overlap();
  CHECK((row_table(placement, kFloat32) ==
         Row{1048, 7, 1064, 8, 2000 + 7 * 16, 0, 2000 + 2 * 16, 1, 2000 + 3 * 16, 2, 2000, 3}));
  CHECK((row_table(placement, kBfloat16) == Row{4256, 20}));
  Row tokens(21);
  placement.write_token_table(kBfloat16, tokens.data(), 21);
  CHECK((tokens == Row{-1, -1, -1, -1, 0, 0, 0, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4256}));
  CHECK_THROWS(placement.write_token_table(kBfloat16, tokens.data(), 20), std::out_of_range,
               "a table of 20 tokens");
  CHECK(!placement.aligned(kFloat32));
  CHECK(placement.aligned(kBfloat16));
}

void checks_of_invalid_runs_throw_the_item_and_both_numbers() {
  const auto placed = [](vitcache::Run first, vitcache::Run second) {
    Placement placement;
    placement.add_source(Source::block(0, 16, 4, kFloat32, false));
    placement.add_run(first);
    placement.add_run(second);
    placement.check_runs(10);
    placement.check_overlap();
  };
  constexpr std::int64_t huge = std::int64_t{1} << 62;
  placed({0, 6, 4, 0}, {0, 0, 4, 0});
  placed({0, 3, 0, 4}, {0, 0, 4, 0});
  CHECK_THROWS(placed({0, 7, 4, 0}, {0, 0, 1, 0}), std::out_of_range,
               "item 0 (tokens [7, 11)) does not fit in 10");
  CHECK_THROWS(placed({0, 0, 2, 0}, {0, 1, 1, 0}), std::invalid_argument, "overlap");
  CHECK_THROWS(placed({0, 5, 2, 0}, {0, 1, 3, 2}), std::invalid_argument,
               "needs rows [2, 5) but the item has 4 rows");
  CHECK_THROWS(placed({1, 0, 1, 0}, {0, 1, 1, 0}), std::invalid_argument,
               "names item 1, the number of items is 1");
  CHECK_THROWS(placed({0, 0, -1, 0}, {0, 1, 1, 0}), std::invalid_argument, "span length is -1");
  CHECK_THROWS(placed({0, huge, huge, huge}, {0, 1, 1, 0}), std::out_of_range, "it must be at most");
  CHECK_THROWS(Source::paged(0, 16, 5, kFloat32, false, {0, 1}, 2), std::invalid_argument,
               "expected pages for 5 rows, got 2 pages of 2 rows");
}

void check_apart_finds_sources_in_the_destination() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 4, kFloat32, false));
  placement.check_apart(0, 1000, 16, 16, kElements, kElements);
  placement.check_apart(1064, 2000, 16, 16, kElements, kElements);
  CHECK_THROWS(placement.check_apart(1063, 2000, 16, 16, kElements, kElements), std::invalid_argument,
               "item 0 shares memory");
  // Source and destination alternate in one buffer: the source's rows lie between the destination's rows, or
  // overlap them.
  Placement interleaved;
  interleaved.add_source(Source::block(1016, 32, 4, kFloat32, false));
  interleaved.add_run({0, 0, 4, 0});
  interleaved.check_apart(1000, 1112, 32, 16, kElements, kElements);
  CHECK_THROWS(interleaved.check_apart(1000, 1112, 32, 20, kElements, kElements), std::invalid_argument,
               "shares memory");
  CHECK_THROWS(interleaved.check_apart(1000, 1112, 48, 16, kElements, kElements), std::invalid_argument,
               "shares memory");
  CHECK_THROWS(placement.check_apart(900, 1001, 16, 16, kElements, kElements), std::invalid_argument,
               "item 0 shares memory");
  // Pages 3, 1 and 5 of two rows each are the rows 2 to 11 of the pool.
  Placement paged;
  paged.add_source(Source::paged(2000, 16, 5, kFloat32, false, {3, 1, 5}, 2));
  paged.add_run({0, 0, 5, 0});
  paged.check_apart(1000, 2032, 16, 16, kElements, kElements);
  paged.check_apart(2192, 3000, 16, 16, kElements, kElements);
  CHECK_THROWS(paged.check_apart(1000, 2033, 16, 16, kElements, kElements), std::invalid_argument,
               "shares memory");
  CHECK_THROWS(paged.check_apart(2191, 3000, 16, 16, kElements, kElements), std::invalid_argument,
               "shares memory");
}

void stored_tables_contain_the_page_of_each_row_once() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 5, kFloat32, false));
  placement.add_source(Source::block(2000, 16, 2, kFloat32, false));
  placement.add_source(Source::block(3000, 16, 2, kBfloat16, false));
  placement.add_store(0, Source::paged(64000, 8, 5, kBfloat16, false, {7, 2, 4}, 2));
  placement.add_run({0, 1, 2, 3});
  placement.add_run({0, 6, 1, 3});  // row 3 again
  placement.add_run({1, 4, 1, 1});
  placement.add_run({2, 0, 1, 0});
  placement.check_runs(8);
  placement.check_overlap();
  CHECK(placement.stores(kFloat32) && !placement.stores(kBfloat16));
  CHECK_EQUAL(placement.num_unplaced_rows(kFloat32), 3);
  CHECK_EQUAL(placement.num_unplaced_rows(kBfloat16), 0);
  constexpr std::int64_t pages = 64000;
  Row rows(3 * (4 + 3));
  placement.write_stored_row_table(kFloat32, rows.data());
  CHECK((rows == Row{1048, 1,  pages + 5 * 8,  1064, 2,  pages + 8 * 8,  1048, 6,  -1,           2016, 4, 0,
                     1000, -1, pages + 14 * 8, 1016, -1, pages + 15 * 8, 1032, -1, pages + 4 * 8}));
  Row tokens(2 * (8 + 3));
  placement.write_stored_token_table(kFloat32, tokens.data(), 8);
  CHECK((tokens == Row{-1,   0,
                       1048, pages + 5 * 8,
                       1064, pages + 8 * 8,
                       0,    0,
                       2016, 0,
                       0,    0,
                       1048, -1,
                       0,    0,
                       1000, pages + 14 * 8,
                       1016, pages + 15 * 8,
                       1032, pages + 4 * 8}));
  CHECK_THROWS(placement.write_stored_token_table(kFloat32, tokens.data(), 6), std::out_of_range,
               "a table of 6 tokens");
  CHECK(!placement.aligned(kFloat32));
  CHECK_THROWS(placement.check_apart(64032, 64040, 8, 8, 4, 4), std::invalid_argument,
               "the storage of item 0 shares memory");
  CHECK_THROWS(placement.add_store(1, Source::paged(0, 8, 3, kBfloat16, false, {0, 1}, 2)),
               std::invalid_argument, "item 1 has 2 rows, the pages to store it in have 3");
}

void scatter_and_embed_with_any_thread_count_write_the_rows(std::int64_t num_rows) {
  const std::vector<float> source = numbered_rows(2 * num_rows, 0);  // each row has two levels
  Placement placement;
  placement.add_source(Source::block(address_of(source), 2 * kRowBytes, num_rows, kFloat32, false));
  placement.add_run({0, 1, num_rows - 1, 1});
  const std::vector<float> weight = numbered_rows(3, 1000);
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(num_rows), 2);
  for (const int threads : {1, 2, 5}) {
    std::vector<float> out(source.size() / 2, -1), level(source.size() / 2, -1);
    const vitcache::Destination destination{
        {plane_of(out), plane_of(level)}, num_rows, kRowBytes, 2 * kElements, kFloat32, false, 0};
    placement.check(destination, false);
    vitcache::scatter_rows(placement, destination, threads);
    CHECK(out[0] == -1.F && level[0] == -1.F);
    for (std::size_t row = 1; row < static_cast<std::size_t>(num_rows); ++row) {
      CHECK_EQUAL(out[row * kElements], static_cast<float>(2 * row));
      CHECK_EQUAL(level[row * kElements + 3], static_cast<float>(2 * row + 1));
    }
    const vitcache::TextTokens text{ids.data(), 4, reinterpret_cast<const std::byte*>(weight.data()),
                                    kRowBytes,  3, kFloat32};
    placement.check_text_ids(text, num_rows);
    vitcache::embed_rows(placement, destination, text, threads);
    CHECK(out[0] == 1002.F && level[0] == 0.F && out[kElements] == 2.F);
  }
}

void sources_set_out_of_order_are_written_by_any_thread_count() {
  constexpr std::int64_t rows = 100'000;  // more than one thread gets a part
  const std::vector<float> pool = numbered_rows(rows, 0), block = numbered_rows(2 * rows, 5000);
  const std::vector<float> weight = numbered_rows(1, -7);
  std::vector<std::int64_t> pages;
  for (std::int64_t page = rows / 4; page-- > 0;) pages.push_back(page);
  const std::vector<std::int64_t> ids(static_cast<std::size_t>(2 * rows + 1), 0);
  Placement placement;
  // The second run of item 1 is the first in token order; every second row of `block` is a row of item 2.
  placement.set_runs({{1, rows + 1, rows - 4, 4}, {2, 1, rows, 0}, {1, 2 * rows - 3, 3, 1}});
  placement.resize_sources(2);
  placement.set_source(2, Source::block(address_of(block), 2 * kRowBytes, rows, kFloat32, false));
  placement.set_source(1, Source::paged(address_of(pool), kRowBytes, rows, kFloat32, false, pages, 4));
  CHECK_EQUAL(placement.num_sources(), 3);
  CHECK_EQUAL(placement.source_rows(0), 0);
  CHECK(placement.places_only(kFloat32) && !placement.places_only(kBfloat16));
  const auto row_of_item_1 = [](std::int64_t row) {
    return static_cast<float>((rows / 4 - 1 - row / 4) * 4 + row % 4);
  };
  for (const int threads : {1, 2, 7}) {
    for (const bool is_embed : {false, true}) {
      std::vector<float> out((2 * rows + 1) * kElements, -1);
      const vitcache::Destination destination{{plane_of(out)}, 2 * rows + 1, kRowBytes, kElements,
                                              kFloat32,        false,        0};
      placement.check(destination, false);
      if (is_embed)
        vitcache::embed_rows(
            placement, destination,
            {ids.data(), 8, reinterpret_cast<const std::byte*>(weight.data()), kRowBytes, 1, kFloat32},
            threads);
      else
        vitcache::scatter_rows(placement, destination, threads);
      const auto value = [&out](std::int64_t token) {
        return out[static_cast<std::size_t>(token * kElements)];
      };
      CHECK_EQUAL(value(0), is_embed ? -7.F : -1.F);
      CHECK_EQUAL(value(2 * rows), is_embed ? -7.F : -1.F);
      for (std::int64_t row = 0; row < rows; ++row)
        CHECK_EQUAL(value(1 + row), static_cast<float>(5000 + 2 * row));
      for (std::int64_t row = 4; row < rows; ++row)
        CHECK_EQUAL(value(rows + 1 + row - 4), row_of_item_1(row));
      for (std::int64_t row = 1; row < 4; ++row)
        CHECK_EQUAL(value(2 * rows - 3 + row - 1), row_of_item_1(row));
    }
  }
}

void check_text_ids_checks_only_tokens_outside_of_runs() {
  Placement placement;
  placement.add_source(Source::block(0, 16, 4, kFloat32, false));
  placement.add_run({0, 4, 2, 0});
  placement.add_run({0, 1, 2, 2});
  placement.add_run({0, 3, 0, 0});
  constexpr std::int64_t any = 1000;
  for (const std::int64_t bad : {std::int64_t{3}, std::int64_t{-1}}) {
    std::vector<std::int64_t> ids{0, any, -any, 2, any, any, 1};
    placement.check_text_ids(ids.data(), 7, 3);
    for (const std::size_t token : {std::size_t{0}, std::size_t{3}, std::size_t{6}}) {
      const std::int64_t valid = std::exchange(ids[token], bad);
      CHECK_THROWS(
          placement.check_text_ids(ids.data(), 7, 3), std::out_of_range,
          "input_ids[" + std::to_string(token) + "] is " + std::to_string(bad) + ", the weight has 3 rows");
      ids[token] = valid;
    }
  }
  const std::vector<std::int32_t> ids{0, any, any, 2, any, any, 3};
  placement.check_text_ids(ids.data(), 7, 4);
  CHECK_THROWS(placement.check_text_ids(ids.data(), 7, 3), std::out_of_range, "input_ids[6] is 3");
  CHECK_THROWS(placement.check_text_ids(ids.data(), 5, 3), std::out_of_range, "a table of 5 tokens");
  Placement empty;
  empty.check_text_ids(ids.data(), 1, 1);
}

void find_overlap_finds_runs_of_any_order_and_source() {
  Placement placement;
  CHECK(!placement.find_overlap());
  constexpr std::int64_t huge = std::int64_t{1} << 62;
  placement.add_run({5, huge, huge, 0});
  placement.add_run({3, 10, 4, 0});
  placement.add_run({4, 12, 0, 0});
  placement.add_run({2, 4, 6, 0});
  CHECK(!placement.find_overlap());
  placement.check_overlap();
  placement.add_run({1, 13, 2, 7});
  const auto overlap = placement.find_overlap();
  CHECK(overlap && overlap->first.item == 3 && overlap->second.item == 1 &&
        overlap->second.source_start == 7);
  CHECK_THROWS(placement.check_overlap(), std::invalid_argument,
               "item 3 (tokens [10, 14)) and item 1 (tokens [13, 15)) overlap");
}

void read_stores_replaces_sources_by_their_pages() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 3, kFloat32, false));
  placement.add_source(Source::block(3000, 16, 3, kFloat32, false));
  placement.add_run({0, 0, 3, 0});
  placement.add_run({1, 3, 1, 2});
  placement.add_store(0, Source::paged(2000, 8, 3, kBfloat16, false, {4, 0}, 2));
  placement.read_stores();
  CHECK(!placement.stores(kFloat32) && !placement.stores(kBfloat16));
  CHECK((row_table(placement, kBfloat16) == Row{2064, 0, 2072, 1, 2000, 2}));
  CHECK((row_table(placement, kFloat32) == Row{3032, 3}));
}

Source narrow(Source source) {
  source.narrow = true;
  return source;
}

void tables_mark_narrow_rows_and_append_ranks() {
  Placement placement;
  placement.add_source(narrow(Source::block(1000, 16, 3, kFloat32, false)));
  placement.add_source(Source::block(2000, 32, 3, kFloat32, false));
  placement.add_source(Source::block(3000, 32, 1, kBfloat16, false));
  placement.set_runs({{1, 6, 2, 1}, {0, 1, 2, 0}, {2, 4, 1, 0}, {0, 3, 0, 0}});
  CHECK((placement.first_ranks() == Row{3, 0, 2, 0}));
  CHECK_EQUAL(placement.num_placed(), 5);
  CHECK(placement.has_narrow(kFloat32) && !placement.has_narrow(kBfloat16));
  Row rows(3 * 4), tokens(2 * 8);
  placement.write_row_table(kFloat32, rows.data(), true);
  CHECK((rows == Row{2032, 6, 3, 2064, 7, 4, 1001, 1, 0, 1017, 2, 1}));
  placement.write_token_table(kFloat32, tokens.data(), 8, true);
  CHECK((tokens == Row{0, 0, 1001, 0, 1017, 1, 0, 0, -1, 0, 0, 0, 2032, 3, 2064, 4}));
  placement.add_store(0, Source::paged(64000, 16, 3, kFloat32, false, {0, 1}, 2));
  Row stored(4 * (4 + 1)), stored_tokens(3 * (8 + 1));
  placement.write_stored_row_table(kFloat32, stored.data(), true);
  CHECK((stored ==
         Row{2032, 6, 0, 3, 2064, 7, 0, 4, 1001, 1, 64000, 0, 1017, 2, 64016, 1, 1033, -1, 64032, 0}));
  placement.write_stored_token_table(kFloat32, stored_tokens.data(), 8, true);
  CHECK((stored_tokens == Row{0, 0, 0, 1001, 64000, 0, 1017, 64016, 1, 0, 0,    0,     -1, 0,
                              0, 0, 0, 0,    2032,  0, 3,    2064,  0, 4, 1033, 64032, 0}));
  placement.read_stores();  // the pages of narrow rows contain narrow rows
  CHECK(placement.sources()[0].narrow && placement.sources()[0].address == 64000);
}

void check_apart_uses_the_width_of_narrow_rows() {
  Placement placement;
  placement.add_source(narrow(Source::block(1000, 64, 1, kFloat32, false)));
  placement.check_apart(1016, 2000, 16, 16, 3 * kElements, kElements);
  CHECK_THROWS(placement.check_apart(1015, 2000, 16, 16, 3 * kElements, kElements), std::invalid_argument,
               "item 0 shares memory");
  placement.add_source(Source::block(5000, 64, 1, kFloat32, false));
  placement.add_store(1, Source::paged(1016, 16, 1, kFloat32, false, {0}, 1));
  placement.check_stores_apart(3 * kElements, kElements);
  Placement wide;
  wide.add_source(Source::block(1000, 64, 1, kFloat32, false));
  wide.add_source(Source::block(5000, 64, 1, kFloat32, false));
  wide.add_store(1, Source::paged(1016, 16, 1, kFloat32, false, {0}, 1));
  CHECK_THROWS(wide.check_stores_apart(3 * kElements, kElements), std::invalid_argument,
               "item 0 shares memory with the storage of item 1");
}

void fit_source_takes_narrow_rows_only_on_request() {
  const vitcache::Destination destination{{}, 9, kRowBytes, 3 * kElements, kFloat32, false, 0};
  const Source source = Source::block(1000, 64, 1, kFloat32, false);
  Placement strict, lenient(true);
  CHECK(!strict.accepts_narrow() && lenient.accepts_narrow());
  CHECK(strict.fit_source(0, source, 3 * kElements, destination));
  CHECK(!strict.fit_source(0, source, kElements, destination));
  CHECK(lenient.fit_source(0, source, kElements, destination) && lenient.sources()[0].narrow);
  CHECK(lenient.fit_source(1, source, 3 * kElements, destination) && !lenient.sources()[1].narrow);
  CHECK(!lenient.fit_source(2, source, 2 * kElements, destination));
  CHECK_EQUAL(lenient.num_sources(), 2);
  strict.accept_narrow();
  CHECK(strict.fit_source(0, source, kElements, destination));
}

void packed_levels_and_narrow_rows_with_any_thread_count_are_written(std::int64_t num_rows) {
  const std::vector<float> wide = numbered_rows(2 * num_rows, 0), single = numbered_rows(num_rows, -9000);
  const std::int64_t num_tokens = 2 * num_rows + 3, num_placed = 2 * num_rows - 1;
  Placement placement;
  placement.add_source(Source::block(address_of(wide), 2 * kRowBytes, num_rows, kFloat32, false));
  placement.add_source(narrow(Source::block(address_of(single), kRowBytes, num_rows, kFloat32, false)));
  // Token 1 on: rows 1.. of the narrow item; then, after a gap, the wide item.
  placement.set_runs({{0, num_rows + 2, num_rows, 0}, {1, 1, num_rows - 1, 1}});
  const std::vector<float> weight = numbered_rows(1, 1000);
  const std::vector<std::int64_t> ids(static_cast<std::size_t>(num_tokens), 0);
  const vitcache::TextTokens text{ids.data(), 8, reinterpret_cast<const std::byte*>(weight.data()),
                                  kRowBytes,  1, kFloat32};
  const auto at = [](const std::vector<float>& rows, std::int64_t row) {
    return rows[static_cast<std::size_t>(row * kElements)];
  };
  for (const int threads : {1, 3})
    for (const bool is_embed : {false, true}) {
      std::vector<float> out(static_cast<std::size_t>(num_tokens * kElements), -1);
      std::vector<float> level(static_cast<std::size_t>(num_placed * kElements), -1);
      vitcache::Destination destination{
          {plane_of(out), plane_of(level)}, num_tokens, kRowBytes, 2 * kElements, kFloat32, false, 0};
      destination.num_packed = num_placed - 1;
      CHECK_THROWS(placement.check(destination, false), std::invalid_argument,
                   "deepstack_rows has " + std::to_string(num_placed - 1) +
                       " rows a level, the call places rows at " + std::to_string(num_placed) + " tokens");
      destination.num_packed = num_placed;
      placement.check(destination, false);
      if (is_embed)
        vitcache::embed_rows(placement, destination, text, threads);
      else
        vitcache::scatter_rows(placement, destination, threads);
      for (const std::int64_t token : {std::int64_t{0}, num_rows, num_rows + 1, num_tokens - 1})
        CHECK_EQUAL(at(out, token), is_embed ? 1000.F : -1.F);
      for (std::int64_t row = 1; row < num_rows; ++row) {
        CHECK_EQUAL(at(out, row), static_cast<float>(row - 9000));
        CHECK_EQUAL(at(level, row - 1), 0.F);
      }
      for (std::int64_t row = 0; row < num_rows; ++row) {
        CHECK_EQUAL(at(out, num_rows + 2 + row), static_cast<float>(2 * row));
        CHECK_EQUAL(at(level, num_rows - 1 + row), static_cast<float>(2 * row + 1));
      }
    }
}

void numbers_beyond_64_bits_are_refused() {
  constexpr std::int64_t huge = std::int64_t{1} << 62;
  const vitcache::Destination unbound{{}, 10, kRowBytes, kElements, kFloat32, false, 0};
  const auto check = [&](const Source& source, const vitcache::Destination& destination) {
    Placement placement;
    placement.add_source(source);
    placement.check(destination, false);
  };
  check(Source::block(0, huge, 1, kFloat32, false), unbound);
  CHECK_THROWS(check(Source::block(0, huge, 4, kFloat32, false), unbound), std::invalid_argument,
               "item 0 has 4 rows, 4611686018427387904 bytes apart: they lie outside of the address space");
  CHECK_THROWS(check(Source::block(0, huge, 0, kFloat32, false), {{}, 10, 0, huge, kFloat32, false, 0}),
               std::invalid_argument, "rows of 4611686018427387904 elements are too long");
  CHECK_THROWS(
      check(Source::block(0, 16, 1, kFloat32, false), {{{nullptr, huge}}, 10, 16, 4, kFloat32, false, 0}),
      std::invalid_argument, "the destination's rows lie outside of the address space");
  CHECK_THROWS(Source::paged(0, 16, 1, kFloat32, false, {-1}, 2), std::invalid_argument, "page -1 of 2 rows");
  CHECK_THROWS(Source::paged(0, 16, 1, kFloat32, false, {huge}, 2), std::invalid_argument,
               "is not in a pool");
  CHECK_THROWS(Source::paged(0, 16, huge, kFloat32, false, {0, 2}, huge - 1), std::invalid_argument,
               "is not in a pool");
}

void items_that_a_placement_does_not_have_are_refused() {
  Placement placement;
  CHECK_THROWS(placement.set_source(-1, Source::block(0, 16, 1, kFloat32, false)), std::out_of_range,
               "item -1");
  CHECK_THROWS(placement.mark_narrow(0), std::out_of_range, "");
  CHECK_THROWS(placement.add_store(3, Source::paged(0, 16, 1, kFloat32, false, {0}, 1)), std::out_of_range,
               "");
}

// As if another thread had changed the ids behind `check_text_ids`.
void an_id_without_a_row_is_not_followed() {
  const std::vector<float> weight = numbered_rows(2, 0);
  std::vector<float> written = numbered_rows(4, 7);
  const std::vector<std::int64_t> ids = {1, std::int64_t{1} << 40, 0, -1};
  const vitcache::Destination destination{{plane_of(written)}, 4, kRowBytes, kElements, kFloat32, false, 0};
  const vitcache::TextTokens text{ids.data(), 8, reinterpret_cast<const std::byte*>(weight.data()),
                                  kRowBytes,  2, kFloat32};
  CHECK_THROWS(vitcache::embed_rows(Placement(), destination, text, 1), std::out_of_range,
               "input_ids[1] was changed during the call to an id outside of the weight, which has 2 rows");
  CHECK_EQUAL(written[0], 1.0F);
  CHECK_EQUAL(written[kElements], 8.0F);
  CHECK_EQUAL(written[2 * kElements], 0.0F);
}

}  // namespace

int main() {
  numbers_beyond_64_bits_are_refused();
  items_that_a_placement_does_not_have_are_refused();
  an_id_without_a_row_is_not_followed();
  row_table_contains_each_placed_row_at_its_page_address();
  checks_of_invalid_runs_throw_the_item_and_both_numbers();
  check_apart_finds_sources_in_the_destination();
  stored_tables_contain_the_page_of_each_row_once();
  scatter_and_embed_with_any_thread_count_write_the_rows(5);
  scatter_and_embed_with_any_thread_count_write_the_rows(200'000);
  sources_set_out_of_order_are_written_by_any_thread_count();
  check_text_ids_checks_only_tokens_outside_of_runs();
  find_overlap_finds_runs_of_any_order_and_source();
  read_stores_replaces_sources_by_their_pages();
  tables_mark_narrow_rows_and_append_ranks();
  check_apart_uses_the_width_of_narrow_rows();
  fit_source_takes_narrow_rows_only_on_request();
  packed_levels_and_narrow_rows_with_any_thread_count_are_written(5);
  packed_levels_and_narrow_rows_with_any_thread_count_are_written(200'000);
}
