#include "python/tensor_reader.h"

#include <cstddef>
#include <cstdint>
#include <utility>

namespace py = pybind11;

namespace vitcache {
namespace {

std::uintptr_t address_of(const dlpack::Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
}

bool is_on_cpu_or_cuda(const dlpack::Tensor& tensor) {
  return tensor.device_type == dlpack::kCpu || tensor.device_type == dlpack::kCuda;
}

// Whether the last two dimensions are rows with adjacent elements.
bool has_dense_rows(const dlpack::Tensor& tensor) {
  return tensor.strides[tensor.ndim - 1] == 1 || tensor.shape[tensor.ndim - 1] <= 1;
}

bool is_contiguous(const dlpack::Tensor& tensor) {
  std::int64_t stride = 1;
  for (std::int32_t dimension = tensor.ndim; dimension-- > 0; stride *= tensor.shape[dimension])
    if (tensor.shape[dimension] != 1 && tensor.strides[dimension] != stride) return false;
  return true;
}

using Extent = std::pair<std::uint64_t, std::uint64_t>;

// The address of the first byte of a tensor, and the address after its last byte.
Extent extent_of(const dlpack::Tensor& tensor) {
  std::int64_t reach = 0;
  for (std::int32_t dimension = 0; dimension < tensor.ndim; ++dimension) {
    if (tensor.shape[dimension] == 0) return {0, 0};
    reach += (tensor.shape[dimension] - 1) * tensor.strides[dimension];
  }
  const std::uint64_t first = address_of(tensor);
  return {first, first + static_cast<std::uint64_t>((reach + 1) * tensor.type_bits * tensor.type_lanes / 8)};
}

bool are_apart(const Extent& a, const Extent& b) { return a.second <= b.first || b.second <= a.first; }

}  // namespace

int kind_of(const dlpack::Tensor& tensor) {
  if (tensor.type_lanes != 1) return -1;
  if (tensor.type_code == dlpack::kBfloat && tensor.type_bits == 16) return kBfloat16;
  if (tensor.type_code != dlpack::kFloat) return -1;
  return tensor.type_bits == 32 ? kFloat32 : tensor.type_bits == 16 ? kFloat16 : -1;
}

TensorReader::TensorReader(py::type tensor_type, py::type parameter_type)
    : tensor_type_(std::move(tensor_type)),
      parameter_type_(std::move(parameter_type)),
      is_negated_(tensor_type_.attr("is_neg")) {
  constexpr const char* name = "__dlpack_c_exchange_api__";
  if (!py::hasattr(tensor_type_, name)) return;
  const py::object attribute = tensor_type_.attr(name);
  if (!PyCapsule_CheckExact(attribute.ptr())) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(attribute.ptr(), PyCapsule_GetName(attribute.ptr())));
  if (api == nullptr) throw py::error_already_set();
  if (api->major == 1) tensor_from_object_ = api->tensor_from_object;
}

bool TensorReader::is_plain(PyObject* object) const {
  const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == tensor_type_.ptr() || type == parameter_type_.ptr();
}

bool TensorReader::read_memory(PyObject* object, dlpack::Tensor& tensor) const {
  if (tensor_from_object_ == nullptr || !is_plain(object)) return false;
  if (tensor_from_object_(object, &tensor) != 0) {
    PyErr_Clear();  // for example, a tensor without storage
    return false;
  }
  return true;
}

bool TensorReader::read(PyObject* object, dlpack::Tensor& tensor) const {
  if (!read_memory(object, tensor)) return false;
  // With torch's negative bit, the values are the negated values in memory.
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_negated_.ptr(), object));
  if (!negated) throw py::error_already_set();
  return negated.ptr() == Py_False;
}

std::optional<Destination> TensorReader::read_rows(const py::object& rows) const {
  dlpack::Tensor tensor{};
  if (!read(rows.ptr(), tensor) || !is_on_cpu_or_cuda(tensor)) return std::nullopt;
  const int kind = kind_of(tensor);
  if (kind < 0 || tensor.ndim < 2 || tensor.ndim > 3 || !has_dense_rows(tensor)) return std::nullopt;
  const std::int64_t* const shape = tensor.shape + tensor.ndim - 2;
  const std::int64_t stride = tensor.strides[tensor.ndim - 2];
  std::int64_t num_tokens = shape[0];
  if (tensor.ndim == 3) {
    if (tensor.shape[0] != 1 && tensor.strides[0] != stride * shape[0]) return std::nullopt;
    num_tokens *= tensor.shape[0];
  }
  if (num_tokens > 1 && stride < shape[1]) return std::nullopt;
  const std::int64_t bytes = kElementBytes[kind];
  return Destination{{{reinterpret_cast<std::byte*>(address_of(tensor)), stride * bytes}},
                     num_tokens,
                     shape[1] * bytes,
                     shape[1],
                     kind,
                     tensor.device_type == dlpack::kCuda,
                     tensor.device_id};
}

std::optional<Destination> TensorReader::read_planes(const py::object& rows, const py::list& levels) const {
  dlpack::Tensor tensor{};
  if (!read(rows.ptr(), tensor) || tensor.ndim != 2) return std::nullopt;
  std::optional<Destination> planes = read_rows(rows);
  if (!planes) return std::nullopt;
  const std::int64_t shape[] = {tensor.shape[0], tensor.shape[1]};
  for (const py::handle level : levels) {
    const std::optional<Destination> plane = read_rows(py::reinterpret_borrow<py::object>(level));
    if (!plane || !read(level.ptr(), tensor) || tensor.ndim != 2 || tensor.shape[0] != shape[0] ||
        tensor.shape[1] != shape[1] || plane->kind != planes->kind || plane->on_cuda != planes->on_cuda ||
        plane->device_id != planes->device_id)
      return std::nullopt;
    const Extent extent = plane->extent(0);
    for (std::size_t index = 0; index < planes->planes.size(); ++index)
      if (!are_apart(planes->extent(index), extent)) return std::nullopt;
    planes->planes.push_back(plane->planes.front());
    planes->width += shape[1];
  }
  return planes;
}

std::optional<Destination> TensorReader::read_packed(const py::object& rows, const py::object& levels) const {
  dlpack::Tensor tensor{};
  if (!read(levels.ptr(), tensor) || tensor.ndim != 3 || !is_contiguous(tensor)) return std::nullopt;
  std::optional<Destination> destination = read_rows(rows);
  if (!destination || kind_of(tensor) != destination->kind || tensor.shape[2] != destination->hidden() ||
      tensor.device_type != (destination->on_cuda ? dlpack::kCuda : dlpack::kCpu) ||
      tensor.device_id != destination->device_id || !are_apart(destination->extent(0), extent_of(tensor)))
    return std::nullopt;
  const std::int64_t level_bytes = tensor.shape[1] * destination->row_bytes;
  auto* const first = reinterpret_cast<std::byte*>(address_of(tensor));
  for (std::int64_t level = 0; level < tensor.shape[0]; ++level)
    destination->planes.push_back({first + level * level_bytes, destination->row_bytes});
  destination->num_packed = tensor.shape[1];
  destination->width += tensor.shape[0] * tensor.shape[2];
  return destination;
}

bool TensorReader::is_apart(const Destination& destination, const py::object& object) const {
  dlpack::Tensor tensor{};
  if (!read_memory(object.ptr(), tensor)) return false;
  const Extent extent = extent_of(tensor);
  for (std::size_t index = 0; index < destination.planes.size(); ++index)
    if (!are_apart(destination.extent(index), extent)) return false;
  return true;
}

std::optional<TextTokens> TensorReader::read_text(const py::object& ids, const py::object& weight) const {
  dlpack::Tensor tokens{}, rows{};
  if (!read(ids.ptr(), tokens) || !read(weight.ptr(), rows) || !is_on_cpu_or_cuda(rows)) return std::nullopt;
  if (tokens.type_code != dlpack::kInt || tokens.type_lanes != 1) return std::nullopt;
  if ((tokens.type_bits != 32 && tokens.type_bits != 64) || tokens.ndim < 1 || tokens.ndim > 2)
    return std::nullopt;
  const int kind = kind_of(rows);
  if (kind < 0 || rows.ndim != 2 || !has_dense_rows(rows) || !is_contiguous(tokens)) return std::nullopt;
  if (tokens.device_type != rows.device_type || tokens.device_id != rows.device_id) return std::nullopt;
  return TextTokens{reinterpret_cast<const void*>(address_of(tokens)),
                    tokens.type_bits / 8,
                    reinterpret_cast<const std::byte*>(address_of(rows)),
                    rows.strides[0] * kElementBytes[kind],
                    rows.shape[0],
                    kind};
}

}  // namespace vitcache
