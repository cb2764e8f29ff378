// Views of dense tensors as rows, planned from DLPack's description alone: no Python, no torch.
//
// The numbers of a description may be any numbers: a tensor is refused if its rows leave 64 bits.
#pragma once

#include <optional>

#include "placement/destination.h"
#include "placement/source.h"
#include "python/dlpack.h"
#include "runtime/byte_range.h"

namespace vitcache {

// The kind of a tensor's elements, or -1 if its dtype is not supported.
int kind_of(const dlpack::Tensor& tensor);

// The bytes of a tensor. None if they lie outside of the address space.
std::optional<ByteRange> bytes_of(const dlpack::Tensor& tensor);

// A tensor as rows of adjacent elements, of a supported dtype, on the CPU or a CUDA device.
struct DenseRows {
  std::uint64_t address;
  std::int64_t row_stride;  // in bytes; that of a single row is `row_bytes`
  std::int64_t num_rows;
  std::int64_t width;
  int kind;
  bool on_cuda;
  std::int32_t device_id;

  std::int64_t row_bytes() const { return width * kElementBytes[kind]; }
};

// The rows of a tensor (T, H), or (B, T, H) that can be viewed as (B * T, H). None for another tensor.
std::optional<DenseRows> rows_of(const dlpack::Tensor& tensor);

// The destination that writes the rows of a tensor. None if rows overlap each other.
std::optional<Destination> destination_of(const dlpack::Tensor& tensor);

// The packed levels (L, N, H) of a contiguous tensor, as further planes of `destination`. Returns false if
// the tensor is not like the destination, or shares memory with it.
bool add_packed(const dlpack::Tensor& levels, Destination& destination);

// The text tokens of contiguous ids (T,) or (B, T) and a weight (V, H) on one device. None for other tensors.
std::optional<TextTokens> text_of(const dlpack::Tensor& ids, const dlpack::Tensor& weight);

}  // namespace vitcache
