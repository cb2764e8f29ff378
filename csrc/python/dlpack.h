// The part of DLPack's C ABI, version 1, that reads a tensor without owning it (github.com/dmlc/dlpack, issue
// 175).
//
// From torch 2.10 on, `torch.Tensor.__dlpack_c_exchange_api__` contains these functions. They return the
// address, shape, strides, dtype and device of a tensor in some tens of nanoseconds. Reading one Python
// attribute of a tensor takes half a microsecond.
#pragma once

#include <cstdint>

namespace vitcache::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major;
  std::uint32_t minor;
  ExchangeApi* previous;
  void* unused[3];  // functions for owned tensors
  // Returns 0, or sets a Python error and returns -1. The pointers in `out` are valid as long as `object`
  // lives.
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

}  // namespace vitcache::dlpack
