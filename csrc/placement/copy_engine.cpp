#include "placement/copy_engine.h"

#include <cstdint>
#include <utility>

#include "runtime/error.h"

namespace vitcache {

std::vector<RowsCopy> copies_of(const std::vector<BlockCopy>& blocks, const Placement& placement,
                                const Destination& destination) {
  std::vector<RowsCopy> copies;
  copies.reserve(blocks.size() * destination.planes.size());
  for (const BlockCopy& block : blocks) {
    const Source& source = placement.sources()[static_cast<std::size_t>(block.item)];
    const auto* rows =
        reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(source.address) +
                                           static_cast<std::uintptr_t>(block.source_row * source.row_stride));
    for (std::size_t index = 0; index < destination.planes.size(); ++index) {
      const Plane& plane = destination.planes[index];
      const std::int64_t first = index > 0 && destination.is_packed() ? block.rank : block.token;
      copies.push_back({plane.base + first * plane.row_stride, static_cast<std::size_t>(plane.row_stride),
                        rows + static_cast<std::int64_t>(index) * destination.row_bytes,
                        static_cast<std::size_t>(source.row_stride),
                        static_cast<std::size_t>(destination.row_bytes),
                        static_cast<std::size_t>(block.num_rows)});
    }
  }
  return copies;
}

PendingCopies::~PendingCopies() {
  try {
    join();
  } catch (const CudaError&) {
    // Only a lost device refuses the wait. Then no copy writes any more.
  }
}

void PendingCopies::join() {
  if (!behind_) return;
  runtime_->wait_event(stream_, behind_.get());
  behind_ = SharedEvent();
}

CopyEngine::CopyEngine(SharedRuntime runtime, int device)
    : runtime_(std::move(runtime)),
      stream_(runtime_, device),
      events_(std::make_shared<EventPool>(runtime_, device)) {}

std::unique_ptr<PendingCopies> CopyEngine::start(const std::vector<RowsCopy>& copies, Stream stream) const {
  auto pending = std::make_unique<PendingCopies>(runtime_, stream);
  if (copies.empty()) return pending;
  const SharedEvent before = events_->take();
  const SharedEvent behind = events_->take();
  runtime_->record(before.get(), stream);
  runtime_->wait_event(stream_.get(), before.get());
  const auto record_end = [&] {
    try {
      runtime_->record(behind.get(), stream_.get());
    } catch (const CudaError&) {
      // Without the event `stream` cannot wait for the copies, so the host waits.
      runtime_->synchronize_stream(stream_.get());
      throw;
    }
    pending->behind_ = behind;
  };
  try {
    queue(copies);
  } catch (...) {
    record_end();
    throw;
  }
  record_end();
  return pending;
}

void CopyEngine::queue(const std::vector<RowsCopy>& copies) const {
  std::vector<void*> destinations;
  std::vector<const void*> sources;
  std::vector<std::size_t> bytes;
  for (const RowsCopy& copy : copies) {
    if (!copy.is_one_block()) continue;
    destinations.push_back(copy.destination);
    sources.push_back(copy.source);
    bytes.push_back(copy.num_rows * copy.row_bytes);
  }
  runtime_->copy_batch_async(destinations, sources, bytes, stream_.get());
  for (const RowsCopy& copy : copies)
    if (!copy.is_one_block())
      runtime_->copy_2d_async(copy.destination, copy.stride, copy.source, copy.source_stride, copy.row_bytes,
                              copy.num_rows, stream_.get());
}

}  // namespace vitcache
