// Random placements whose long host blocks the copy engine copies, against a loop over all runs.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "placement/copy_engine.h"
#include "placement/placement.h"
#include "stand_in.h"

namespace {

using vitcache::BlockCopy;
using vitcache::CopyEngine;
using vitcache::Destination;
using vitcache::kElementBytes;
using vitcache::Placement;
using vitcache::Run;
using vitcache::SharedRuntime;
using vitcache::Source;
using vitcache::Stream;

constexpr int kThreads = 3;
constexpr int kTraces = 60;
constexpr std::int64_t kPool = 1 << 14;  // bytes of all sources of a placement
constexpr std::byte kUnwritten{0xA5};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int64_t up_to(std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(0, most)(engine_);
  }
  bool one_in(std::int64_t number) { return up_to(number - 1) == 0; }
  template <typename Value>
  void shuffle(std::vector<Value>& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }

 private:
  std::mt19937 engine_;
};

// Page-locked memory, which is freed behind all work of a stream.
class Pinned {
 public:
  Pinned(SharedRuntime runtime, Stream stream, std::int64_t bytes)
      : runtime_(std::move(runtime)),
        stream_(stream),
        data_(static_cast<std::byte*>(runtime_->alloc_host(static_cast<std::size_t>(bytes)))) {}
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() {
    runtime_->synchronize_stream(stream_);
    runtime_->free_host(data_);
  }
  std::byte* data() const { return data_; }

 private:
  SharedRuntime runtime_;
  Stream stream_;
  std::byte* data_;
};

// The planes of a destination behind one another, with bytes between their rows that nothing may write.
struct Planes {
  std::vector<std::byte> bytes;
  std::vector<std::size_t> begins;
  std::vector<std::int64_t> strides;

  std::byte* row(std::size_t plane, std::int64_t number) {
    return bytes.data() + begins[plane] + static_cast<std::size_t>(number * strides[plane]);
  }
};

// A random destination, and random items and runs.
struct Scene {
  std::int64_t row_bytes, num_tokens;
  int kind;
  Destination destination;
  Planes planes;
  std::vector<Source> sources, stores;  // a store without rows: the item is not stored
  std::vector<Run> runs;

  Scene(Random& random, std::byte* pool);

  Source random_source(Random& random, std::byte* pool, std::int64_t num_planes) const;
  Placement placement() const;
};

Scene::Scene(Random& random, std::byte* pool)
    : row_bytes(4 * (1 + random.up_to(4))), num_tokens(1 + random.up_to(40)), kind(random.one_in(2) ? 0 : 2) {
  const auto num_planes = static_cast<std::size_t>(1 + random.up_to(3));
  const std::int64_t num_items = 1 + random.up_to(4);
  for (std::int64_t item = 0; item < num_items; ++item) {
    Source source = random_source(random, pool, static_cast<std::int64_t>(num_planes));
    source.narrow = num_planes > 1 && random.one_in(4);
    const bool is_stored = random.one_in(5);
    stores.push_back(Source::block(pool == nullptr ? 0 : 2, 2, is_stored ? source.num_rows : 0, kind, false));
    sources.push_back(std::move(source));
  }
  std::int64_t token = random.up_to(2), num_placed = 0;
  while (token < num_tokens) {
    const std::int64_t item = random.up_to(num_items - 1);
    const std::int64_t num_rows = sources[static_cast<std::size_t>(item)].num_rows;
    const std::int64_t length = random.up_to(std::min(num_rows, num_tokens - token));
    runs.push_back({item, token, length, random.up_to(num_rows - length)});
    token += length + random.up_to(2);
    num_placed += length;
  }
  random.shuffle(runs);
  const bool is_packed = num_planes > 1 && random.one_in(2);
  std::size_t end = 0;
  for (std::size_t plane = 0; plane < num_planes; ++plane) {
    planes.begins.push_back(end);
    planes.strides.push_back(row_bytes + (random.one_in(2) ? 0 : 4 * random.up_to(3)));
    end +=
        static_cast<std::size_t>((plane > 0 && is_packed ? num_placed : num_tokens) * planes.strides.back());
  }
  planes.bytes.assign(end, kUnwritten);
  const std::int64_t elements = row_bytes / kElementBytes[kind];
  destination = {{},   num_tokens, row_bytes, elements * static_cast<std::int64_t>(num_planes),
                 kind, true,       0,         is_packed ? num_placed : Destination::kNotPacked};
  for (std::size_t plane = 0; plane < num_planes; ++plane)
    destination.planes.push_back({planes.row(plane, 0), planes.strides[plane]});
}

// Rows anywhere in the pool: rows with a distance, rows that overlap, one row many times, or pages.
Source Scene::random_source(Random& random, std::byte* pool, std::int64_t num_planes) const {
  const auto address = [pool](std::int64_t offset) {
    return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(pool)) +
           static_cast<std::uint64_t>(offset);
  };
  const std::int64_t width = num_planes * row_bytes;
  const int source_kind = random.one_in(5) ? 2 - kind : kind;
  const bool on_host = !random.one_in(4);
  const std::int64_t num_rows = 1 + random.up_to(11);
  if (random.one_in(2)) {
    const std::int64_t page_rows = 1 + random.up_to(3);
    std::vector<std::int64_t> pages(16);
    std::iota(pages.begin(), pages.end(), 0);
    if (random.one_in(2)) random.shuffle(pages);
    pages.resize(static_cast<std::size_t>((num_rows + page_rows - 1) / page_rows));
    return Source::paged(address(0), width, num_rows, source_kind, on_host, std::move(pages), page_rows);
  }
  const std::int64_t strides[] = {width, width, width + 4 * random.up_to(4), 4 * random.up_to(2)};
  return Source::block(address(4 * random.up_to(200)), strides[random.up_to(3)], num_rows, source_kind,
                       on_host);
}

Placement Scene::placement() const {
  Placement placement(true);
  for (const Source& source : sources) placement.add_source(source);
  for (std::size_t item = 0; item < stores.size(); ++item)
    if (stores[item].num_rows > 0) placement.add_store(static_cast<std::int64_t>(item), stores[item]);
  placement.set_runs(runs);
  placement.check_runs(num_tokens);
  return placement;
}

// Writes a row of one plane as a kernel does: zeros for the levels of a narrow row. A cast is not modelled: a
// row of another kind writes its first byte to all bytes.
void write_row(Planes& planes, const Scene& scene, std::size_t plane, std::int64_t row, std::int64_t address,
               bool is_narrow, bool is_cast) {
  const auto size = static_cast<std::size_t>(scene.row_bytes);
  const auto* source = reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(address));
  std::byte* const target = planes.row(plane, row);
  if (plane > 0 && is_narrow)
    std::memset(target, 0, size);
  else if (is_cast)
    std::memset(target, std::to_integer<int>(source[0]), size);
  else
    std::memcpy(target, source + plane * size, size);
}

// All planes after each run was written row by row. Ranks are counted over all tokens.
Planes expected_planes(const Scene& scene) {
  Planes planes = scene.planes;
  std::vector<const Run*> run_of(static_cast<std::size_t>(scene.num_tokens), nullptr);
  for (const Run& run : scene.runs)
    for (std::int64_t row = 0; row < run.length; ++row)
      run_of[static_cast<std::size_t>(run.start + row)] = &run;
  std::int64_t rank = 0;
  for (std::int64_t token = 0; token < scene.num_tokens; ++token) {
    const Run* run = run_of[static_cast<std::size_t>(token)];
    if (run == nullptr) continue;
    const Source& source = scene.sources[static_cast<std::size_t>(run->item)];
    const std::int64_t address = source.row_address(run->source_start + token - run->start);
    for (std::size_t plane = 0; plane < scene.destination.planes.size(); ++plane)
      write_row(planes, scene, plane, plane > 0 && scene.destination.is_packed() ? rank : token, address,
                source.narrow, source.kind != scene.kind);
    ++rank;
  }
  return planes;
}

// Stands for the launches: writes the rows of the tables of all kinds, and returns the tokens that it wrote.
std::vector<bool> run_kernels(Scene& scene, const Placement& placement) {
  std::vector<bool> is_written(static_cast<std::size_t>(scene.num_tokens));
  const bool is_packed = scene.destination.is_packed();
  for (int kind = 0; kind < vitcache::kNumKinds; ++kind) {
    const bool stores = placement.stores(kind);
    const std::int64_t columns = 2 + stores + is_packed;
    std::vector<std::int64_t> table(static_cast<std::size_t>(
        columns * (placement.num_rows(kind) + (stores ? placement.num_unplaced_rows(kind) : 0))));
    if (stores)
      placement.write_stored_row_table(kind, table.data(), is_packed);
    else
      placement.write_row_table(kind, table.data(), is_packed);
    for (auto row = table.begin(); row != table.end(); row += columns) {
      const std::int64_t address = row[0], token = row[1];
      if (token == Placement::kNoToken) continue;
      CHECK(!is_written[static_cast<std::size_t>(token)]);
      is_written[static_cast<std::size_t>(token)] = true;
      for (std::size_t plane = 0; plane < scene.destination.planes.size(); ++plane)
        write_row(scene.planes, scene, plane, plane > 0 && is_packed ? row[columns - 1] : token, address & ~1,
                  (address & 1) != 0, kind != scene.kind);
    }
  }
  return is_written;
}

// In the token table of the destination's kind, copied tokens and those of other kinds are kOtherKind.
void check_token_table(const Scene& scene, const Placement& placement, const std::vector<bool>& by_kernel) {
  const bool is_packed = scene.destination.is_packed();
  const std::int64_t columns = 1 + is_packed;
  std::vector<std::int64_t> table(static_cast<std::size_t>(columns * scene.num_tokens));
  placement.write_token_table(scene.kind, table.data(), scene.num_tokens, is_packed);
  std::vector<std::int64_t> expected(static_cast<std::size_t>(scene.num_tokens), 0);
  for (const Run& run : scene.runs) {
    const Source& source = scene.sources[static_cast<std::size_t>(run.item)];
    for (std::int64_t row = 0; row < run.length; ++row) {
      const auto token = static_cast<std::size_t>(run.start + row);
      expected[token] = by_kernel[token] && source.kind == scene.kind
                            ? source.marked(source.row_address(run.source_start + row))
                            : Placement::kOtherKind;
    }
  }
  for (std::size_t token = 0; token < expected.size(); ++token)
    CHECK_EQUAL(table[token * static_cast<std::size_t>(columns)], expected[token]);
}

struct Launch {
  std::function<void()> work;
};

void launch(Stream stream, Launch& queued) {
  const auto host_function = stand_in::find<int(void*, void (*)(void*), void*)>("cudaLaunchHostFunc");
  CHECK_EQUAL(
      host_function(stream.handle, [](void* data) { static_cast<Launch*>(data)->work(); }, &queued), 0);
}

// Returns the number of copied blocks.
std::size_t run_trace(const SharedRuntime& runtime, const CopyEngine& engine, Stream stream, unsigned seed) {
  Random random(seed);
  const Pinned pool(runtime, stream, kPool), upload(runtime, stream, kPool);
  std::memset(pool.data(), 0, kPool);
  for (std::int64_t i = 0; i < kPool; ++i) upload.data()[i] = static_cast<std::byte>(random.up_to(255));
  Scene scene(random, pool.data());
  Placement placement = scene.placement();
  const std::int64_t least[] = {1, 2 * scene.row_bytes, 4 * scene.row_bytes, INT64_MAX};
  const auto& blocks = placement.take_host_blocks(
      scene.destination,
      {least[random.up_to(3)], least[random.up_to(3)], random.one_in(4) ? scene.row_bytes + 1 : 1});
  const auto copies = vitcache::copies_of(blocks, placement, scene.destination);
  std::vector<bool> by_kernel;
  Planes read = scene.planes, expected;
  Launch kernels{[&] { by_kernel = run_kernels(scene, placement); }};
  Launch reader{[&] { read.bytes = scene.planes.bytes; }};
  // The rows change behind the sources' first values, and the planes are read behind the join.
  runtime->copy_async(pool.data(), upload.data(), kPool, stream);
  const auto pending = engine.start(copies, stream);
  launch(stream, kernels);
  pending->join();
  launch(stream, reader);
  runtime->synchronize_stream(stream);
  expected = scene.planes;
  std::fill(expected.bytes.begin(), expected.bytes.end(), kUnwritten);
  std::swap(scene.planes.bytes, expected.bytes);
  expected = expected_planes(scene);
  CHECK(read.bytes == expected.bytes);
  check_token_table(scene, placement, by_kernel);
  return blocks.size();
}

void copies_and_kernels_write_what_a_loop_over_all_runs_writes() {
  const SharedRuntime runtime = stand_in::open();
  const CopyEngine engine(runtime, 0);
  std::vector<std::size_t> num_blocks(kThreads);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      // The first thread uses the legacy stream.
      const Stream stream = thread == 0 ? Stream(nullptr, 0) : runtime->create_stream(0);
      for (int trace = 0; trace < kTraces; ++trace)
        num_blocks[static_cast<std::size_t>(thread)] +=
            run_trace(runtime, engine, stream, static_cast<unsigned>(thread * kTraces + trace));
      if (thread != 0) runtime->destroy_stream(stream);
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::size_t number : num_blocks) CHECK(number >= kTraces / 4);
}

}  // namespace

int main() { copies_and_kernels_write_what_a_loop_over_all_runs_writes(); }
