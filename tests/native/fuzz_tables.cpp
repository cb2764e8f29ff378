// Checks of placements at any addresses, and the tables that kernels read, against loops over single rows.
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "check.h"
#include "fuzz.h"
#include "fuzz_input.h"

namespace fuzz {
namespace {

using vitcache::Placement;
using vitcache::Run;
using vitcache::Source;

// A row as a table describes it.
struct Row {
  std::int64_t address;
  std::int64_t token;
  std::int64_t page;
  std::int64_t rank;
};

Placement placement_of(const Input& input) {
  Placement placement;
  for (const Source& source : input.sources) placement.add_source(source);
  for (const auto& [item, pages] : input.stores) placement.add_store(item, pages);
  placement.set_runs(input.runs);
  return placement;
}

std::int64_t address_of(const Source& source, std::int64_t row) {
  std::int64_t pool_row = row;
  if (source.pages != nullptr)
    pool_row = source.pages->at(static_cast<std::size_t>(row / source.page_rows)) * source.page_rows +
               row % source.page_rows;
  const Wide address = Wide{source.address} + Wide{pool_row} * source.row_stride;
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(address));
}

// The placed rows of `kind` in the order of the runs, then the rows that are stored and not placed.
std::vector<Row> rows_of(const Input& input, int kind, bool with_stores) {
  std::vector<Row> rows;
  std::map<std::int64_t, std::vector<bool>> visited;
  const auto page_of = [&](std::int64_t item, std::int64_t row) {
    const auto store = input.stores.find(item);
    if (!with_stores || store == input.stores.end()) return Placement::kNoPage;
    std::vector<bool>& is_visited = visited.emplace(item, store->second.num_rows).first->second;
    if (is_visited.at(static_cast<std::size_t>(row))) return Placement::kStoredElsewhere;
    is_visited[static_cast<std::size_t>(row)] = true;
    return address_of(store->second, row);
  };
  const auto add = [&](std::int64_t item, std::int64_t row, std::int64_t token, std::int64_t rank) {
    const Source& source = input.sources[static_cast<std::size_t>(item)];
    rows.push_back({address_of(source, row) | (source.narrow ? 1 : 0), token, page_of(item, row), rank});
  };
  for (const Run& run : input.runs)
    for (std::int64_t row = 0;
         row < run.length && input.sources[static_cast<std::size_t>(run.item)].kind == kind; ++row)
      add(run.item, run.source_start + row, run.start + row, rank_of(input.runs, run.start + row));
  for (const auto& [item, pages] : input.stores) {
    if (!with_stores || input.sources[static_cast<std::size_t>(item)].kind != kind) continue;
    for (std::int64_t row = 0; row < pages.num_rows; ++row) {
      const std::vector<bool>& is_visited = visited.emplace(item, pages.num_rows).first->second;
      if (!is_visited.at(static_cast<std::size_t>(row))) add(item, row, Placement::kNoToken, 0);
    }
  }
  return rows;
}

// The row table of `rows`, and, with the same rows, the token table.
void check_tables(const Input& input, const Placement& placement, int kind, bool has_pages, bool has_ranks) {
  const std::vector<Row> rows = rows_of(input, kind, has_pages);
  const std::int64_t num_tokens = input.destination.num_tokens;
  std::int64_t num_placed = 0;
  for (const Row& row : rows) num_placed += row.token == Placement::kNoToken ? 0 : 1;
  CHECK_EQUAL(placement.num_rows(kind), num_placed);
  const auto num_unplaced = static_cast<std::int64_t>(rows.size()) - num_placed;
  if (has_pages) CHECK_EQUAL(placement.num_unplaced_rows(kind), num_unplaced);
  const std::size_t token_columns = std::size_t{1} + (has_pages ? 1U : 0U) + (has_ranks ? 1U : 0U);
  Numbers row_table, token_table(token_columns * static_cast<std::size_t>(num_tokens + num_unplaced));
  for (const Run& run : input.runs)
    for (std::int64_t token = run.start; token < run.start + run.length; ++token)
      token_table.at(token_columns * static_cast<std::size_t>(token)) = Placement::kOtherKind;
  std::int64_t unplaced = num_tokens;
  for (const Row& row : rows) {
    auto value =
        token_columns * static_cast<std::size_t>(row.token == Placement::kNoToken ? unplaced++ : row.token);
    row_table.insert(row_table.end(), {row.address, row.token});
    token_table.at(value++) = row.address;
    if (has_pages) row_table.push_back(row.page), token_table.at(value++) = row.page;
    if (has_ranks) row_table.push_back(row.rank), token_table.at(value) = row.rank;
  }
  Numbers written(row_table.size(), 7), written_tokens(token_table.size(), 7);
  if (has_pages) {
    placement.write_stored_row_table(kind, written.data(), has_ranks);
    placement.write_stored_token_table(kind, written_tokens.data(), num_tokens, has_ranks);
  } else {
    placement.write_row_table(kind, written.data(), has_ranks);
    placement.write_token_table(kind, written_tokens.data(), num_tokens, has_ranks);
  }
  CHECK(written == row_table);
  CHECK(written_tokens == token_table);
}

template <typename Id>
void check_ids(Random& random, const Input& input, const Placement& placement) {
  std::vector<Id> ids;
  const std::int64_t num_embeddings = random.up_to(12);
  bool is_valid = true;
  for (std::int64_t token = 0; token < input.destination.num_tokens; ++token) {
    const auto id = static_cast<Id>(random.number(num_embeddings - 1 < 0 ? 0 : num_embeddings - 1, 50));
    bool is_text = true;
    for (const Run& run : input.runs)
      is_text = is_text && (token < run.start || token >= run.start + run.length);
    is_valid = is_valid && (!is_text || (id >= 0 && id < num_embeddings));
    ids.push_back(id);
  }
  const auto call = [&] {
    placement.check_text_ids(ids.data(), input.destination.num_tokens, num_embeddings);
  };
  CHECK_EQUAL(is_accepted(call), is_valid);
}

}  // namespace

Verdict placement_tables(Random& random) {
  const std::optional<Input> input = some_input(random);
  if (!input) return Verdict::kRefused;
  const Placement placement = placement_of(*input);
  if (input->runs.empty() || random.one_in(2))
    CHECK_EQUAL(placement.find_overlap().has_value(), overlap(input->runs));
  const Judgement judgement = judge(*input);
  const bool accepted = is_accepted([&] { placement.check(input->destination, false); });
  CHECK(!accepted || !judgement.is_wrong);
  CHECK(accepted || judgement.is_wrong || judgement.may_be_refused);
  if (!accepted) return Verdict::kRefused;
  if (input->destination.num_tokens > kMostRows) return Verdict::kAccepted;
  for (int kind = 0; kind < vitcache::kNumKinds; ++kind)
    check_tables(*input, placement, kind, !input->stores.empty(), random.one_in(2));
  random.one_in(2) ? check_ids<std::int32_t>(random, *input, placement)
                   : check_ids<std::int64_t>(random, *input, placement);
  return Verdict::kAccepted;
}

}  // namespace fuzz
