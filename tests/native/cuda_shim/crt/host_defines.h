// NVIDIA's wheels of the CUDA runtime have cuda_runtime_api.h, but not this header, which it includes. A host
// compiler needs only empty attributes, and the alignment of a few structs.
#pragma once

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __host__
#define __device__
#define __device_builtin__
#define __cudart_builtin__
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
