// The CUDA runtime, opened at run time.
//
// The entry points are declared by hand and found with dlsym, so the build needs no CUDA header and one
// binary serves machines with and without CUDA. `open` looks at, in this order:
//   1. the file that VITCACHE_CUDART names, and then at nothing else
//   2. a copy that the process has loaded already: torch's, since errors are kept per copy
//   3. the directories that the caller gives (the wheels of NVIDIA's runtime)
//   4. the loader's own search path, then /usr/local/cuda/lib64
// VITCACHE_NO_CUDA, set to anything but 0, turns the search off.
//
// Thread rule: immutable after `open`; every method may be called from any thread, also while another one
// captures a graph. The library is never closed, since the driver's threads may run in it until the process
// ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/handles.h"

namespace vitcache {

// One line per entry point: result, name, parameters. Only what kept its signature from CUDA 12 to 13 belongs
// here; tests/native/check_signatures.cpp compares it with the real headers where there are any. Streams and
// events are `void*`. The properties begin with `char name[256]` in every version, and no more of them is
// read.
#define VITCACHE_CUDA_FUNCTIONS(FUNCTION)                                         \
  FUNCTION(const char*, cudaGetErrorName, (int))                                  \
  FUNCTION(const char*, cudaGetErrorString, (int))                                \
  FUNCTION(int, cudaGetLastError, ())                                             \
  FUNCTION(int, cudaRuntimeGetVersion, (int*))                                    \
  FUNCTION(int, cudaDriverGetVersion, (int*))                                     \
  FUNCTION(int, cudaGetDeviceCount, (int*))                                       \
  FUNCTION(int, cudaGetDeviceProperties, (void*, int device))                     \
  FUNCTION(int, cudaDeviceGetAttribute, (int*, int attribute, int device))        \
  FUNCTION(int, cudaGetDevice, (int*))                                            \
  FUNCTION(int, cudaSetDevice, (int))                                             \
  FUNCTION(int, cudaHostAlloc, (void**, std::size_t bytes, unsigned flags))       \
  FUNCTION(int, cudaFreeHost, (void*))                                            \
  FUNCTION(int, cudaHostRegister, (void*, std::size_t bytes, unsigned flags))     \
  FUNCTION(int, cudaHostUnregister, (void*))                                      \
  FUNCTION(int, cudaStreamCreateWithFlags, (void** stream, unsigned flags))       \
  FUNCTION(int, cudaStreamDestroy, (void* stream))                                \
  FUNCTION(int, cudaStreamSynchronize, (void* stream))                            \
  FUNCTION(int, cudaStreamIsCapturing, (void* stream, int* status))               \
  FUNCTION(int, cudaThreadExchangeStreamCaptureMode, (int* mode))                 \
  FUNCTION(int, cudaStreamWaitEvent, (void* stream, void* event, unsigned flags)) \
  FUNCTION(int, cudaEventCreateWithFlags, (void** event, unsigned flags))         \
  FUNCTION(int, cudaEventDestroy, (void* event))                                  \
  FUNCTION(int, cudaEventRecord, (void* event, void* stream))                     \
  FUNCTION(int, cudaEventQuery, (void* event))                                    \
  FUNCTION(int, cudaEventSynchronize, (void* event))                              \
  FUNCTION(int, cudaMemcpyAsync, (void*, const void*, std::size_t bytes, int kind, void* stream))

// cudaMemcpyAttributes.
struct CudaCopyAttributes {
  int source_order = 1;  // cudaMemcpySrcAccessOrderStream
  int source_location[2] = {};
  int destination_location[2] = {};
  unsigned flags = 0;
};

// What one needs only for some calls: of the driver, whose 64-bit address is a device's, and of runtimes from
// 12.8 on, whose parameters changed with 13.0.
struct CudaOptionalFunctions {
  using BatchCopy12 = int (*)(void** destinations, void** sources, std::size_t* bytes, std::size_t count,
                              CudaCopyAttributes*, std::size_t* first, std::size_t num_attributes,
                              std::size_t* failed, void* stream);
  using BatchCopy13 = int (*)(void* const* destinations, const void* const* sources, const std::size_t* bytes,
                              std::size_t count, CudaCopyAttributes*, std::size_t* first,
                              std::size_t num_attributes, void* stream);

  int (*cuStreamWaitValue32_v2)(void* stream, unsigned long long address, std::uint32_t value,
                                unsigned flags) = nullptr;
  void* cudaMemcpyBatchAsync = nullptr;
};

struct CudaFunctions {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declarator
#define VITCACHE_DECLARE(result, name, parameters) result(*name) parameters = nullptr;
  VITCACHE_CUDA_FUNCTIONS(VITCACHE_DECLARE)
#undef VITCACHE_DECLARE
};

struct CudaDevice {
  std::string name;
  int major;  // compute capability
  int minor;
};

class CudaRuntime {
 public:
  // Does not throw where there is no CUDA: `available` and `searched` say what was found.
  static CudaRuntime open(const std::vector<std::string>& directories);

  // This file and no other. Throws CudaError with the reason if it does not serve.
  static CudaRuntime open_file(const std::string& path);

  bool available() const { return !path_.empty(); }
  const std::string& path() const { return path_; }

  // What was tried before `path`, or in vain, each with its reason.
  const std::vector<std::string>& searched() const { return searched_; }

  // The rest throws CudaError where there is no runtime or a call fails. A failed call leaves no error behind
  // for the next caller of cudaGetLastError to find.

  // 1000 * major + 10 * minor, as CUDA counts. The driver's is the newest runtime that it can serve; 0: no
  // driver.
  int version() const;
  int driver_version() const;

  // Starts the driver, creates no context.
  std::vector<CudaDevice> devices() const;

  // The calling thread's current device.
  int device() const;
  void set_device(int device) const;

  // Page-locked memory, usable by every device under its own address. Throws OutOfMemory where there is not
  // so much of it.
  void* alloc_host(std::size_t bytes) const;
  void free_host(void* memory) const noexcept;
  void register_host(void* memory, std::size_t bytes) const;
  void unregister_host(void* memory) const noexcept;

  // A method that takes a stream works with any current device, and so do those that take events alone.

  // A stream of `device` that does not wait for the legacy stream.
  Stream create_stream(int device) const;
  void destroy_stream(Stream stream) const noexcept;
  void synchronize_stream(Stream stream) const;

  // Whether the work that the stream is given goes into a graph.
  bool is_capturing(Stream stream) const;

  // An event of `device`, without a time. It can be recorded on streams of that device alone; streams of any
  // device can wait for it.
  Event create_event(int device) const;
  void destroy_event(Event event) const noexcept;
  void record(Event event, Stream stream) const;
  bool is_done(Event event) const;
  void synchronize(Event event) const;

  // Whether `event` has passed or never will, the device being lost: then every call fails, and nothing is
  // read or written any more.
  bool is_done_or_lost(Event event) const;

  // The work that `stream` is given from now on waits for what `event` was last recorded behind. An event
  // that was never recorded is not waited for.
  void wait_event(Stream stream, Event event) const;

  // The same for the host's store of `value`, or of one up to 2^31 - 1 further, to page-locked memory. Until
  // then every call that synchronises with the device stalls: whoever stores it must not depend on one.
  void wait_value(Stream stream, std::uint32_t* address, std::uint32_t value) const;

  void copy_async(void* destination, const void* source, std::size_t bytes, Stream stream) const;

  // Copies in any order among themselves, in one call where the runtime has it. The stream must not be the
  // legacy one (std::invalid_argument).
  void copy_batch_async(const std::vector<void*>& destinations, const std::vector<const void*>& sources,
                        const std::vector<std::size_t>& bytes, Stream stream) const;

 private:
  bool try_open(const std::string& name, int flags, const std::string& label);
  const CudaFunctions& functions() const;
  void check(int status, const char* call, const char* file, int line) const;

  void ignore(int status) const noexcept;
  void check_memory(int status, std::size_t bytes, const char* call, const char* file, int line) const;

  CudaFunctions functions_;
  CudaOptionalFunctions optional_;
  std::string path_;
  std::vector<std::string> searched_;
};

using SharedRuntime = std::shared_ptr<const CudaRuntime>;

}  // namespace vitcache
