#include "python/dense_rows.h"

#include <cstddef>
#include <cstdint>

namespace vitcache {
namespace {

std::uint64_t address_of(const dlpack::Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
}

bool is_on_cpu_or_cuda(const dlpack::Tensor& tensor) {
  return tensor.device_type == dlpack::kCpu || tensor.device_type == dlpack::kCuda;
}

bool is_contiguous(const dlpack::Tensor& tensor) {
  std::int64_t stride = 1;
  for (std::int32_t dimension = tensor.ndim; dimension-- > 0;) {
    if (tensor.shape[dimension] != 1 && tensor.strides[dimension] != stride) return false;
    if (__builtin_mul_overflow(stride, tensor.shape[dimension], &stride)) return false;
  }
  return true;
}

}  // namespace

int kind_of(const dlpack::Tensor& tensor) {
  if (tensor.type_lanes != 1) return -1;
  if (tensor.type_code == dlpack::kBfloat && tensor.type_bits == 16) return kBfloat16;
  if (tensor.type_code != dlpack::kFloat) return -1;
  return tensor.type_bits == 32 ? kFloat32 : tensor.type_bits == 16 ? kFloat16 : -1;
}

std::optional<ByteRange> bytes_of(const dlpack::Tensor& tensor) {
  const std::int64_t element_bytes = (std::int64_t{tensor.type_bits} * tensor.type_lanes + 7) / 8;
  return range_of(address_of(tensor), element_bytes, tensor.ndim, tensor.shape, tensor.strides,
                  element_bytes);
}

std::optional<DenseRows> rows_of(const dlpack::Tensor& tensor) {
  const int kind = kind_of(tensor);
  if (kind < 0 || !is_on_cpu_or_cuda(tensor) || tensor.ndim < 2 || tensor.ndim > 3) return std::nullopt;
  const std::int64_t* const shape = tensor.shape + tensor.ndim - 2;
  const std::int64_t* const strides = tensor.strides + tensor.ndim - 2;
  if (strides[1] != 1 && shape[1] > 1) return std::nullopt;
  if (!bytes_of(tensor)) return std::nullopt;
  std::int64_t num_rows = shape[0];
  if (tensor.ndim == 3) {
    std::int64_t batch_stride = 0;
    if (__builtin_mul_overflow(num_rows, tensor.shape[0], &num_rows)) return std::nullopt;
    if (tensor.shape[0] != 1 &&
        (__builtin_mul_overflow(strides[0], shape[0], &batch_stride) || tensor.strides[0] != batch_stride))
      return std::nullopt;
  }
  DenseRows rows{address_of(tensor), 0, num_rows, shape[1], kind, tensor.device_type == dlpack::kCuda,
                 tensor.device_id};
  std::int64_t row_bytes = 0;
  if (__builtin_mul_overflow(shape[1], kElementBytes[kind], &row_bytes)) return std::nullopt;
  rows.row_stride = row_bytes;
  if (num_rows > 1 && __builtin_mul_overflow(strides[0], kElementBytes[kind], &rows.row_stride))
    return std::nullopt;
  return rows;
}

std::optional<Destination> destination_of(const dlpack::Tensor& tensor) {
  const auto rows = rows_of(tensor);
  if (!rows || rows->row_stride < rows->row_bytes()) return std::nullopt;
  return Destination{{{reinterpret_cast<std::byte*>(rows->address), rows->row_stride}},
                     rows->num_rows,
                     rows->row_bytes(),
                     rows->width,
                     rows->kind,
                     rows->on_cuda,
                     rows->device_id};
}

bool add_packed(const dlpack::Tensor& levels, Destination& destination) {
  if (levels.ndim != 3 || !is_contiguous(levels) || kind_of(levels) != destination.kind ||
      levels.shape[2] != destination.hidden() ||
      levels.device_type != (destination.on_cuda ? dlpack::kCuda : dlpack::kCpu) ||
      levels.device_id != destination.device_id)
    return false;
  const auto bytes = bytes_of(levels);
  if (!bytes || !bytes->is_apart(destination.range(0))) return false;
  const std::int64_t level_bytes = levels.shape[1] * destination.row_bytes;
  auto* const first = reinterpret_cast<std::byte*>(address_of(levels));
  for (std::int64_t level = 0; level < levels.shape[0]; ++level)
    destination.planes.push_back({first + level * level_bytes, destination.row_bytes});
  destination.num_packed = levels.shape[1];
  destination.width += levels.shape[0] * levels.shape[2];
  return true;
}

std::optional<TextTokens> text_of(const dlpack::Tensor& ids, const dlpack::Tensor& weight) {
  if (ids.type_code != dlpack::kInt || ids.type_lanes != 1 || (ids.type_bits != 32 && ids.type_bits != 64) ||
      ids.ndim < 1 || ids.ndim > 2 || !is_contiguous(ids) || !bytes_of(ids))
    return std::nullopt;
  if (weight.ndim != 2 || ids.device_type != weight.device_type || ids.device_id != weight.device_id)
    return std::nullopt;
  const auto rows = rows_of(weight);
  if (!rows) return std::nullopt;
  return TextTokens{reinterpret_cast<const void*>(address_of(ids)),
                    ids.type_bits / 8,
                    reinterpret_cast<const std::byte*>(rows->address),
                    rows->row_stride,
                    rows->num_rows,
                    rows->kind};
}

}  // namespace vitcache
