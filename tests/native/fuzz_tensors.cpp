// DLPack's descriptions of tensors, as rows, packed levels and token ids, against the address of each
// element.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "fuzz.h"
#include "python/dense_rows.h"
#include "python/dlpack.h"

namespace fuzz {
namespace {

using vitcache::DenseRows;
using vitcache::Destination;
using vitcache::kElementBytes;
namespace dlpack = vitcache::dlpack;
using Numbers = std::vector<std::int64_t>;

constexpr std::int64_t kMaxElements = 512;  // of tensors whose elements are visited one by one

// A description, and the arrays that it refers to.
struct Described {
  Numbers shape;
  Numbers strides;
  dlpack::Tensor tensor{};

  const dlpack::Tensor& read() {
    tensor.shape = shape.data();
    tensor.strides = strides.data();
    tensor.ndim = static_cast<std::int32_t>(shape.size());
    return tensor;
  }
  // The number of elements, but at most kMaxElements + 1.
  std::int64_t count() const {
    Wide count = 1;
    for (const std::int64_t size : shape) count *= std::clamp<std::int64_t>(size, 0, kMaxElements + 1);
    return static_cast<std::int64_t>(std::min<Wide>(count, kMaxElements + 1));
  }
  std::uint64_t begin() const { return reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset; }
  // The tensor has elements.
  Wide address_of(std::int64_t element) const {
    Wide at = begin();
    for (std::size_t i = shape.size(); i-- > 0; element /= shape[i])
      at += Wide{element % shape[i]} * strides[i] * (tensor.type_bits / 8);
    return at;
  }
};

// As a rule contiguous, or with gaps between rows; rarely of any sizes, strides, dtype or address.
Described some_tensor(Random& random, std::int64_t ndim, std::int32_t device_type) {
  Described made;
  for (; ndim > 0; --ndim) made.shape.push_back(random.number(5, 80));
  std::int64_t stride = 1;
  for (std::size_t i = made.shape.size(); i-- > 0; stride *= std::clamp<std::int64_t>(made.shape[i], 1, 64)) {
    made.strides.insert(made.strides.begin(), random.one_in(60) ? random.number(40, 1) : stride);
    if (random.one_in(8)) ++stride;
  }
  made.tensor.data = reinterpret_cast<void*>(
      random.one_in(60) ? random.bits() : static_cast<std::uint64_t>(4096 * (1 + random.up_to(40))));
  made.tensor.byte_offset =
      random.one_in(60) ? random.bits() : static_cast<std::uint64_t>(8 * random.up_to(4));
  made.tensor.device_type = random.one_in(60) ? static_cast<std::int32_t>(random.up_to(9)) : device_type;
  made.tensor.device_id = random.one_in(60) ? 1 : 0;
  made.tensor.type_code = random.pick<std::uint8_t>({dlpack::kFloat, dlpack::kFloat, dlpack::kBfloat});
  made.tensor.type_bits = random.pick<std::uint8_t>({16, 16, 32});
  made.tensor.type_lanes = random.one_in(80) ? 2 : 1;
  if (random.one_in(60)) made.tensor.type_bits = static_cast<std::uint8_t>(random.bits());
  return made;
}

// Row r, element c of the rows is element r * width + c of the tensor.
void check_rows(const Described& tensor, const DenseRows& rows) {
  Wide num_rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) num_rows *= tensor.shape[i];
  CHECK(num_rows == rows.num_rows);
  CHECK_EQUAL(rows.width, tensor.shape.back());
  const std::int64_t bytes = kElementBytes[rows.kind], count = tensor.count();
  CHECK_EQUAL(bytes * 8, std::int64_t{tensor.tensor.type_bits});
  for (std::int64_t element = 0; element < count && count <= kMaxElements; ++element)
    CHECK(Wide{rows.address} + Wide{element / rows.width} * rows.row_stride + element % rows.width * bytes ==
          tensor.address_of(element));
}

bool is_plain(const Described& tensor) {
  const dlpack::Tensor& read = tensor.tensor;
  return read.type_lanes == 1 &&
         (read.type_bits == 16 || (read.type_bits == 32 && read.type_code == dlpack::kFloat)) &&
         (read.device_type == dlpack::kCpu || read.device_type == dlpack::kCuda);
}

// Whether the elements lie one behind the other, at addresses and with strides that no hostile number made.
bool is_contiguous(const Described& tensor) {
  if (tensor.count() == 0 || tensor.count() > kMaxElements || tensor.begin() > std::uint64_t{1} << 40)
    return false;
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0; stride *= tensor.shape[i])
    if (tensor.strides[i] != stride) return false;
  return true;
}

// Packed levels in the destination: each has its rows in the tensor, and shares no byte with the rows.
Verdict check_packed(Random& random, Destination destination) {
  Described levels = some_tensor(random, 3, destination.on_cuda ? dlpack::kCuda : dlpack::kCpu);
  if (!random.one_in(10)) {
    levels.shape.back() = destination.hidden();
    levels.strides = {0, destination.hidden(), 1};
    levels.strides[0] =
        std::clamp<std::int64_t>(levels.shape[1], 0, 64) * std::min<std::int64_t>(destination.hidden(), 64);
    levels.tensor.type_code = destination.kind == vitcache::kBfloat16 ? dlpack::kBfloat : dlpack::kFloat;
    levels.tensor.type_bits = destination.kind == vitcache::kFloat32 ? 32 : 16;
  }
  const vitcache::ByteRange rows = destination.range(0);
  if (!vitcache::add_packed(levels.read(), destination)) return Verdict::kRefused;
  const auto count = static_cast<std::size_t>(levels.shape[0]);
  CHECK_EQUAL(destination.planes.size(), 1 + count);
  CHECK_EQUAL(destination.num_packed, levels.shape[1]);
  CHECK_EQUAL(destination.width, (1 + levels.shape[0]) * levels.shape[2]);
  for (std::size_t level = 0; level < count && levels.count() <= kMaxElements && levels.count() > 0;
       ++level) {
    const auto base = Wide{reinterpret_cast<std::uintptr_t>(destination.planes[level + 1].base)};
    CHECK(base == levels.address_of(static_cast<std::int64_t>(level) * levels.shape[1] * levels.shape[2]));
    CHECK(destination.range(level + 1).is_apart(rows));
  }
  return Verdict::kAccepted;
}

}  // namespace

Verdict dense_rows(Random& random) {
  Described tensor = some_tensor(random, random.one_in(20) ? random.up_to(4) : 2 + random.up_to(1),
                                 random.pick({dlpack::kCpu, dlpack::kCuda}));
  const std::optional<DenseRows> rows = vitcache::rows_of(tensor.read());
  const bool is_dense =
      is_plain(tensor) && tensor.shape.size() >= 2 && tensor.shape.size() <= 3 && is_contiguous(tensor);
  CHECK(rows || !is_dense);
  if (rows) check_rows(tensor, *rows);
  const std::optional<Destination> destination = vitcache::destination_of(tensor.tensor);
  CHECK(rows || !destination);
  CHECK(destination || !is_dense);
  if (!destination) return Verdict::kRefused;
  CHECK(destination->num_tokens <= 1 || destination->planes[0].row_stride >= destination->row_bytes);
  const vitcache::ByteRange range = destination->range(0);
  if (!range.empty()) CHECK(vitcache::bytes_of(tensor.tensor)->contains(range));
  return check_packed(random, *destination);
}

Verdict text_tokens(Random& random) {
  Described ids = some_tensor(random, 1 + random.up_to(1), dlpack::kCpu);
  if (!random.one_in(20)) ids.tensor.type_code = dlpack::kInt;
  if (!random.one_in(20)) ids.tensor.type_bits = random.pick<std::uint8_t>({32, 64});
  Described weight = some_tensor(random, 2, dlpack::kCpu);
  const auto text = vitcache::text_of(ids.read(), weight.read());
  const bool are_ids = ids.tensor.type_code == dlpack::kInt && ids.tensor.type_lanes == 1 &&
                       (ids.tensor.type_bits == 32 || ids.tensor.type_bits == 64);
  const bool is_one_device =
      ids.tensor.device_type == weight.tensor.device_type && ids.tensor.device_id == weight.tensor.device_id;
  CHECK(text || !are_ids || !is_one_device || !is_plain(weight) || !is_contiguous(ids) ||
        !is_contiguous(weight));
  if (!text) return Verdict::kRefused;
  CHECK(are_ids && is_one_device && is_plain(weight));
  CHECK_EQUAL(text->id_bytes * 8, int{ids.tensor.type_bits});
  CHECK_EQUAL(text->num_embeddings, weight.shape[0]);
  for (std::int64_t id = 0; id < ids.count() && ids.count() <= kMaxElements; ++id)
    CHECK(ids.address_of(id) == Wide{reinterpret_cast<std::uintptr_t>(text->ids)} + id * text->id_bytes);
  for (std::int64_t row = 0; weight.count() > 0 && weight.count() <= kMaxElements && row < weight.shape[0];
       ++row)
    CHECK(weight.address_of(row * weight.shape[1]) ==
          Wide{reinterpret_cast<std::uintptr_t>(text->weight)} + row * text->row_stride);
  return Verdict::kAccepted;
}

}  // namespace fuzz
