// Long runs of host rows: which the copy engine takes, and how its copies are queued and ordered.
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "placement/copy_engine.h"
#include "placement/placement.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using vitcache::CopyEngine;
using vitcache::Destination;
using vitcache::kFloat32;
using vitcache::PendingCopies;
using vitcache::Placement;
using vitcache::Plane;
using vitcache::RowsCopy;
using vitcache::Source;
using vitcache::Stream;
using Row = std::vector<std::int64_t>;

constexpr std::int64_t kRowBytes = 16;  // four elements

Destination destination_of(std::vector<Plane> planes, std::int64_t num_tokens) {
  const auto width = static_cast<std::int64_t>(4 * planes.size());
  return {std::move(planes), num_tokens, kRowBytes, width, kFloat32, false, 0};
}

Plane plane_of(std::vector<float>& rows) { return {reinterpret_cast<std::byte*>(rows.data()), kRowBytes}; }

void take_host_blocks_removes_long_blocks_from_runs_and_tables() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 8, kFloat32, true));
  placement.add_source(Source::paged(2000, 16, 8, kFloat32, true, {4, 5, 9, 1}, 2));
  placement.add_source(Source::block(9000, 16, 8, kFloat32, false));
  placement.add_run({0, 0, 3, 1});
  placement.add_run({1, 10, 8, 0});
  placement.add_run({2, 20, 8, 0});
  const auto& blocks = placement.take_host_blocks(destination_of({{nullptr, 16}}, 28), {3 * 16, 1, 1});
  CHECK_EQUAL(blocks.size(), std::size_t{2});
  CHECK(
      (blocks[0].item == 0 && blocks[0].source_row == 1 && blocks[0].token == 0 && blocks[0].num_rows == 3));
  CHECK(
      (blocks[1].item == 1 && blocks[1].source_row == 8 && blocks[1].token == 10 && blocks[1].num_rows == 4));
  CHECK_EQUAL(placement.num_rows(kFloat32), 4 + 8);
  Row tokens(28);
  placement.write_token_table(kFloat32, tokens.data(), 28);
  CHECK((Row(tokens.begin(), tokens.begin() + 4) == Row{-1, -1, -1, 0}));
  CHECK((Row(tokens.begin() + 10, tokens.begin() + 18) ==
         Row{-1, -1, -1, -1, 2000 + 18 * 16, 2000 + 19 * 16, 2000 + 2 * 16, 2000 + 3 * 16}));
}

void take_host_blocks_skips_stored_sources() {
  Placement placement;
  placement.add_source(Source::block(1000, 16, 8, kFloat32, true));
  placement.add_store(0, Source::paged(64000, 16, 8, kFloat32, false, {0, 1}, 4));
  placement.add_run({0, 0, 8, 0});
  CHECK(placement.take_host_blocks(destination_of({{nullptr, 16}}, 8), {16, 16, 1}).empty());
  CHECK_EQUAL(placement.num_rows(kFloat32), 8);
}

// Rows of three planes, of which the last two are packed: blocks keep the ranks of their tokens, and so do
// the runs that stay.
void take_host_blocks_of_packed_levels_keeps_all_ranks() {
  Placement placement;
  placement.add_source(Source::block(48000, 48, 8, kFloat32, true));
  placement.add_source(Source::block(1600, 48, 8, kFloat32, false));
  placement.add_run({0, 20, 5, 1});
  placement.add_run({1, 10, 2, 0});
  placement.add_run({0, 2, 1, 0});
  placement.add_run({1, 26, 1, 7});
  Destination destination = destination_of({{nullptr, 16}, {nullptr, 16}, {nullptr, 16}}, 30);
  destination.num_packed = placement.num_placed();
  const auto& blocks = placement.take_host_blocks(destination, {1, 3 * 16, 16});
  CHECK_EQUAL(blocks.size(), std::size_t{1});
  CHECK(blocks[0].token == 20 && blocks[0].num_rows == 5 && blocks[0].rank == 3);
  Row rows(3 * 4);
  placement.write_row_table(kFloat32, rows.data(), true);
  CHECK((rows == Row{1600, 10, 1, 1648, 11, 2, 48000, 2, 0, 1600 + 7 * 48, 26, 8}));
}

// The kernel reads rows that a copy engine cannot copy, or copies slowly.
void take_host_blocks_leaves_rows_of_other_forms(const Destination& destination, Source source) {
  Placement placement;
  placement.add_source(std::move(source));
  placement.add_run({0, 0, 4, 0});
  CHECK(placement.take_host_blocks(destination, {1, 1, 16}).empty());
  CHECK_EQUAL(placement.runs().size(), std::size_t{1});
}

void take_host_blocks_takes_no_narrow_overlapping_distant_or_cast_rows() {
  const Destination two = destination_of({{nullptr, 16}, {nullptr, 64}}, 4);
  const auto host = [](std::int64_t stride) { return Source::block(1000, stride, 4, kFloat32, true); };
  Source narrow = host(16);
  narrow.narrow = true;
  take_host_blocks_leaves_rows_of_other_forms(two, narrow);
  take_host_blocks_leaves_rows_of_other_forms(two, host(0));   // one row, expanded
  take_host_blocks_leaves_rows_of_other_forms(two, host(31));  // rows of 32 bytes overlap
  take_host_blocks_leaves_rows_of_other_forms(two, host(std::int64_t{1} << 31));
  take_host_blocks_leaves_rows_of_other_forms(two, Source::block(1000, 32, 4, vitcache::kFloat16, true));
  take_host_blocks_leaves_rows_of_other_forms(two, Source::block(1000, 32, 4, kFloat32, false));
  take_host_blocks_leaves_rows_of_other_forms(destination_of({{nullptr, std::int64_t{1} << 31}}, 4),
                                              host(16));
  Destination thin = destination_of({{nullptr, 8}, {nullptr, 8}}, 4);
  thin.row_bytes = 8;  // less than the least width of a row, 16
  take_host_blocks_leaves_rows_of_other_forms(thin, host(16));
}

void copies_of_blocks_name_each_plane_once() {
  std::vector<float> out(40), level(40);
  Placement placement;
  placement.add_source(Source::paged(64000, 32, 8, kFloat32, true, {3, 4}, 4));
  placement.add_run({0, 2, 6, 1});
  const Destination destination = destination_of({plane_of(out), plane_of(level)}, 10);
  const auto& blocks = placement.take_host_blocks(destination, {1, 1, 16});
  const std::vector<vitcache::RowsCopy> copies = vitcache::copies_of(blocks, placement, destination);
  CHECK_EQUAL(copies.size(), std::size_t{2});
  for (std::size_t plane = 0; plane < 2; ++plane) {
    const vitcache::RowsCopy& copy = copies[plane];
    CHECK(copy.destination == destination.planes[plane].base + 2 * 16 && copy.stride == 16);
    CHECK(reinterpret_cast<std::uintptr_t>(copy.source) == 64000 + 13 * 32 + plane * 16);
    CHECK(copy.source_stride == 32 && copy.row_bytes == 16 && copy.num_rows == 6 && !copy.is_one_block());
  }
}

// Page-locked rows and their copies: the first 3 rows as one block, rows 4 to 7 at twice their distance.
struct Scene {
  vitcache::SharedRuntime runtime = stand_in::open();
  Stream stream = runtime->create_stream(0);
  float* rows = static_cast<float*>(runtime->alloc_host(8 * kRowBytes));
  std::vector<float> block = std::vector<float>(3 * 4, -1), spread = std::vector<float>(8 * 4, -1);

  Scene() {
    for (int i = 0; i < 8 * 4; ++i) rows[i] = static_cast<float>(i);
  }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;
  ~Scene() {
    runtime->free_host(rows);
    runtime->destroy_stream(stream);
  }

  std::vector<RowsCopy> copies() {
    const auto bytes = [](const float* at) { return reinterpret_cast<const std::byte*>(at); };
    return {{reinterpret_cast<std::byte*>(spread.data()), 2 * kRowBytes, bytes(rows + 4 * 4), kRowBytes,
             kRowBytes, 4},
            {reinterpret_cast<std::byte*>(block.data()), kRowBytes, bytes(rows), kRowBytes, kRowBytes, 3}};
  }

  // Queues a copy of the last row's first element behind the work that `stream` has so far.
  void read_last(float* value) const {
    runtime->copy_async(value, spread.data() + 6 * 4, sizeof(float), stream);
  }
};

void start_copies_rows_and_join_orders_the_stream() {
  Scene scene;
  const CopyEngine engine(scene.runtime, 0);
  float read_late = -2;
  {
    const stand_in::Pause pause;
    // Earlier work of the stream changes the rows: the copies must read the new value.
    scene.runtime->copy_async(scene.rows + 7 * 4, scene.rows + 1, sizeof(float), scene.stream);
    const auto pending = engine.start(scene.copies(), scene.stream);
    pending->join();
    pending->join();  // does nothing
    scene.read_last(&read_late);
  }
  scene.runtime->synchronize_stream(scene.stream);
  CHECK_EQUAL(read_late, 1.F);
  CHECK(std::memcmp(scene.block.data(), scene.rows, 3 * kRowBytes) == 0);
  for (std::size_t row = 0; row < 4; ++row) {
    CHECK(std::memcmp(scene.spread.data() + 8 * row, scene.rows + 4 * (4 + row), kRowBytes) == 0);
    CHECK_EQUAL(scene.spread[8 * row + 4], -1.F);
  }
}

// A launch that fails between `start` and `join` must not leave copies behind that nothing waits for.
void destructor_joins() {
  Scene scene;
  const CopyEngine engine(scene.runtime, 0);
  float read = -2;
  {
    const stand_in::Pause pause;
    static_cast<void>(engine.start(scene.copies(), scene.stream));
    scene.read_last(&read);
  }
  scene.runtime->synchronize_stream(scene.stream);
  CHECK_EQUAL(read, 7.F * 4);
}

void start_that_fails_joins_the_copies_that_are_queued() {
  for (const char* entry :
       {"cudaMemcpyBatchAsync", "cudaMemcpy2DAsync", "cudaEventRecord", "cudaStreamWaitEvent"}) {
    Scene scene;
    const CopyEngine engine(scene.runtime, 0);
    VITCACHE_CONTROL(reset)();
    VITCACHE_CONTROL(fail)(entry, 1, 999);
    CHECK_THROWS(engine.start(scene.copies(), scene.stream), vitcache::CudaError, entry);
    // All that was queued is ordered before later work of the stream, so its memory may be freed then.
    scene.runtime->synchronize_stream(scene.stream);
    CHECK_EQUAL(stand_in::count().copies, entry == std::string("cudaMemcpy2DAsync") ? 1U : 0U);
    VITCACHE_CONTROL(reset)();
  }
}

// No event is behind the copies then, so no stream could wait for them.
void start_that_cannot_record_the_end_waits_on_the_host() {
  Scene scene;
  const CopyEngine engine(scene.runtime, 0);
  VITCACHE_CONTROL(reset)();
  VITCACHE_CONTROL(delay_copies)(20000);
  VITCACHE_CONTROL(fail)("cudaEventRecord", 2, 999);  // the first call is for the event before the copies
  CHECK_THROWS(engine.start(scene.copies(), scene.stream), vitcache::CudaError, "cudaEventRecord");
  CHECK_EQUAL(stand_in::count().copies, 2U);
  VITCACHE_CONTROL(reset)();
}

void start_without_copies_makes_no_call() {
  Scene scene;
  const CopyEngine engine(scene.runtime, 0);
  VITCACHE_CONTROL(fail)("cudaEventRecord", 1, 999);
  engine.start({}, scene.stream)->join();
  VITCACHE_CONTROL(reset)();
}

}  // namespace

int main() {
  take_host_blocks_removes_long_blocks_from_runs_and_tables();
  take_host_blocks_skips_stored_sources();
  take_host_blocks_of_packed_levels_keeps_all_ranks();
  take_host_blocks_takes_no_narrow_overlapping_distant_or_cast_rows();
  copies_of_blocks_name_each_plane_once();
  start_copies_rows_and_join_orders_the_stream();
  destructor_joins();
  start_that_fails_joins_the_copies_that_are_queued();
  start_that_cannot_record_the_end_waits_on_the_host();
  start_without_copies_makes_no_call();
}
