// Compares the prototypes of csrc/runtime/cuda_runtime.h with NVIDIA's headers at compile time.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "runtime/cuda_runtime.h"

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
static_assert(sizeof(cudaMemcpyAttributes) == sizeof(vitcache::CudaCopyAttributes));
static_assert(offsetof(cudaMemcpyAttributes, srcLocHint) == 4 && offsetof(cudaMemcpyAttributes, flags) == 20);
static_assert(cudaMemcpySrcAccessOrderStream == 1);
#endif

}  // namespace
