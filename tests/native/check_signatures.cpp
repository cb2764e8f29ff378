// Compares csrc/runtime/cuda_runtime.h, and the errors and handles of the stand-in, with NVIDIA's headers at
// compile time. It is compiled once for each CUDA runtime in requirements/cudart.txt.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "runtime/cuda_runtime.h"
#include "stand_in/errors.h"

namespace {

// The type by which cuda_runtime.h declares a handle, an enumeration or a struct.
template <typename Type>
struct Plain {
  using type = std::conditional_t<std::is_enum_v<Type>, int, Type>;
};
template <>
struct Plain<cudaStream_t> {
  using type = void*;
};
template <>
struct Plain<cudaEvent_t> {
  using type = void*;
};
template <>
struct Plain<cudaStream_t*> {
  using type = void**;
};
template <>
struct Plain<cudaEvent_t*> {
  using type = void**;
};
template <>
struct Plain<cudaDeviceProp*> {
  using type = void*;
};
template <>
struct Plain<cudaStreamCaptureStatus*> {
  using type = int*;
};
template <>
struct Plain<cudaStreamCaptureMode*> {
  using type = int*;
};
#if CUDART_VERSION >= 12080
template <>
struct Plain<cudaMemcpyAttributes*> {
  using type = vitcache::CudaCopyAttributes*;
};
#endif
template <typename Function>
struct PlainFunction;
template <typename Result, typename... Parameters>
struct PlainFunction<Result (*)(Parameters...)> {
  using type = typename Plain<Result>::type (*)(typename Plain<Parameters>::type...);
};
template <typename Function>
using PlainOf = typename PlainFunction<Function>::type;

// `&::name` selects the C function: NVIDIA's header adds overloads for C++.
#define VITCACHE_SAME(result, name, parameters) \
  static_assert(std::is_same_v<PlainOf<decltype(&::name)>, result(*) parameters>, "signature of " #name);
VITCACHE_CUDA_FUNCTIONS(VITCACHE_SAME)

// In cuda.h, cuStreamWaitValue32 is a macro for cuStreamWaitValue32_v2.
using Optional = vitcache::CudaOptionalFunctions;
static_assert(
    std::is_same_v<PlainOf<decltype(&::cuStreamWaitValue32)>, decltype(Optional::cuStreamWaitValue32_v2)>);
#if CUDART_VERSION >= 13000
static_assert(std::is_same_v<PlainOf<decltype(&::cudaMemcpyBatchAsync)>, Optional::BatchCopy13>);
#elif CUDART_VERSION >= 12080
static_assert(std::is_same_v<PlainOf<decltype(&::cudaMemcpyBatchAsync)>, Optional::BatchCopy12>);
#endif

static_assert(cudaErrorMemoryAllocation == 2 && cudaErrorNotReady == 600);
static_assert(cudaHostAllocPortable == 1 && cudaHostAllocMapped == 2);
static_assert(cudaHostRegisterPortable == 1 && cudaHostRegisterMapped == 2);
static_assert(cudaStreamNonBlocking == 1 && cudaEventDisableTiming == 2 && cudaMemcpyDefault == 4);
static_assert(CU_STREAM_WAIT_VALUE_GEQ == 0);
static_assert(cudaStreamCaptureModeRelaxed == 2 && cudaStreamCaptureStatusNone == 0);
static_assert(sizeof(cudaStreamCaptureMode) == sizeof(int) && sizeof(cudaStreamCaptureStatus) == sizeof(int));
#if CUDART_VERSION >= 12080
using Attributes = vitcache::CudaCopyAttributes;
static_assert(sizeof(cudaMemcpyAttributes) == sizeof(Attributes));
static_assert(alignof(cudaMemcpyAttributes) == alignof(Attributes));
static_assert(offsetof(cudaMemcpyAttributes, srcAccessOrder) == offsetof(Attributes, source_order));
static_assert(offsetof(cudaMemcpyAttributes, srcLocHint) == offsetof(Attributes, source_location));
static_assert(offsetof(cudaMemcpyAttributes, dstLocHint) == offsetof(Attributes, destination_location));
static_assert(offsetof(cudaMemcpyAttributes, flags) == offsetof(Attributes, flags));
static_assert(sizeof(cudaMemLocation) == sizeof(Attributes::source_location));
static_assert(cudaMemcpySrcAccessOrderStream == 1);
#endif

// CudaRuntime::devices reads the name, and passes 16384 bytes.
static_assert(offsetof(cudaDeviceProp, name) == 0 && sizeof(cudaDeviceProp::name) == 256);
static_assert(sizeof(cudaDeviceProp) <= 16384);
static_assert(cudaDevAttrComputeCapabilityMajor == 75 && cudaDevAttrComputeCapabilityMinor == 76);

// The errors and modes of the stand-in.
namespace stand_in = vitcache::stand_in;
static_assert(stand_in::kInvalidValue == cudaErrorInvalidValue);
static_assert(stand_in::kInitializationError == cudaErrorInitializationError);
static_assert(stand_in::kInvalidPitch == cudaErrorInvalidPitchValue);
static_assert(stand_in::kInvalidDevice == cudaErrorInvalidDevice);
static_assert(stand_in::kInvalidContext == cudaErrorDeviceUninitialized);
static_assert(stand_in::kInvalidHandle == cudaErrorInvalidResourceHandle);
static_assert(stand_in::kIllegalState == cudaErrorIllegalState);
static_assert(stand_in::kIllegalAddress == cudaErrorIllegalAddress);
static_assert(stand_in::kAlreadyRegistered == cudaErrorHostMemoryAlreadyRegistered);
static_assert(stand_in::kNotRegistered == cudaErrorHostMemoryNotRegistered);
static_assert(stand_in::kCaptureUnsupported == cudaErrorStreamCaptureUnsupported);
static_assert(stand_in::kCaptureInvalidated == cudaErrorStreamCaptureInvalidated);
static_assert(stand_in::kCaptureMerge == cudaErrorStreamCaptureMerge);
static_assert(stand_in::kCaptureUnmatched == cudaErrorStreamCaptureUnmatched);
static_assert(stand_in::kCaptureUnjoined == cudaErrorStreamCaptureUnjoined);
static_assert(stand_in::kCaptureIsolation == cudaErrorStreamCaptureIsolation);
static_assert(stand_in::kCaptureImplicit == cudaErrorStreamCaptureImplicit);
static_assert(stand_in::kCapturedEvent == cudaErrorCapturedEvent);
static_assert(stand_in::kCaptureWrongThread == cudaErrorStreamCaptureWrongThread);
static_assert(cudaStreamCaptureModeGlobal == 0 && cudaStreamCaptureModeThreadLocal == 1);
static_assert(cudaStreamCaptureStatusActive == 1 && cudaStreamCaptureStatusInvalidated == 2);
static_assert(cudaEventWaitExternal == 1);

}  // namespace
