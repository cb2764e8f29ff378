// The CUDA runtime, opened at run time.
//
// The entry points are declared by hand and found with dlsym. So the build needs no CUDA header, and one
// binary serves machines with and without CUDA. `open` searches in this order:
//   1. the file that VITCACHE_CUDART names by an absolute path; if that variable is set, nothing else is
//      searched
//   2. a copy that the process has already loaded, normally torch's. Each copy stores its own last error, so
//      vitcache must use the same copy as torch
//   3. the directories that the caller passes (the wheels of NVIDIA's runtime)
//   4. the absolute folders of LD_LIBRARY_PATH, the loader's own folders, then /usr/local/cuda/lib64
// If VITCACHE_NO_CUDA is set to anything but 0, `open` does not search. No file is searched in the working
// directory: a relative path is refused, and if LD_LIBRARY_PATH has a relative or empty entry, the loader,
// which would follow it, is not asked for a library by name.
//
// Thread rule: immutable after `open`. Any thread may call any method, also while another thread captures a
// graph. The library is never closed, because the driver's threads may run in it until the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/handles.h"

namespace vitcache {

// One line per entry point: result, name, parameters. The table lists only entry points whose signature is
// the same in CUDA 12 and 13; tests/native/check_signatures.cpp compares them with the headers of several
// versions. Streams and events are `void*`. cudaDeviceProp begins with `char name[256]` in every version; no
// other field is read.
#define VITCACHE_CUDA_FUNCTIONS(FUNCTION)                                                         \
  FUNCTION(const char*, cudaGetErrorName, (int))                                                  \
  FUNCTION(const char*, cudaGetErrorString, (int))                                                \
  FUNCTION(int, cudaGetLastError, ())                                                             \
  FUNCTION(int, cudaRuntimeGetVersion, (int*))                                                    \
  FUNCTION(int, cudaDriverGetVersion, (int*))                                                     \
  FUNCTION(int, cudaGetDeviceCount, (int*))                                                       \
  FUNCTION(int, cudaGetDeviceProperties, (void*, int device))                                     \
  FUNCTION(int, cudaDeviceGetAttribute, (int*, int attribute, int device))                        \
  FUNCTION(int, cudaGetDevice, (int*))                                                            \
  FUNCTION(int, cudaSetDevice, (int))                                                             \
  FUNCTION(int, cudaHostAlloc, (void**, std::size_t bytes, unsigned flags))                       \
  FUNCTION(int, cudaFreeHost, (void*))                                                            \
  FUNCTION(int, cudaHostRegister, (void*, std::size_t bytes, unsigned flags))                     \
  FUNCTION(int, cudaHostUnregister, (void*))                                                      \
  FUNCTION(int, cudaStreamCreateWithFlags, (void** stream, unsigned flags))                       \
  FUNCTION(int, cudaStreamDestroy, (void* stream))                                                \
  FUNCTION(int, cudaStreamSynchronize, (void* stream))                                            \
  FUNCTION(int, cudaStreamIsCapturing, (void* stream, int* status))                               \
  FUNCTION(int, cudaThreadExchangeStreamCaptureMode, (int* mode))                                 \
  FUNCTION(int, cudaStreamWaitEvent, (void* stream, void* event, unsigned flags))                 \
  FUNCTION(int, cudaEventCreateWithFlags, (void** event, unsigned flags))                         \
  FUNCTION(int, cudaEventDestroy, (void* event))                                                  \
  FUNCTION(int, cudaEventRecord, (void* event, void* stream))                                     \
  FUNCTION(int, cudaEventQuery, (void* event))                                                    \
  FUNCTION(int, cudaEventSynchronize, (void* event))                                              \
  FUNCTION(int, cudaMemcpyAsync, (void*, const void*, std::size_t bytes, int kind, void* stream)) \
  FUNCTION(int, cudaMemcpy2DAsync,                                                                \
           (void*, std::size_t pitch, const void*, std::size_t source_pitch, std::size_t width,   \
            std::size_t height, int kind, void* stream))

// cudaMemcpyAttributes.
struct CudaCopyAttributes {
  int source_order = 1;  // cudaMemcpySrcAccessOrderStream
  int source_location[2] = {};
  int destination_location[2] = {};
  unsigned flags = 0;
};

// Entry points that only some calls need: cuStreamWaitValue32_v2 of the driver, which takes a 64-bit device
// address; and cudaMemcpyBatchAsync, which exists from CUDA 12.8 on and has other parameters from 13.0 on.
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
  // Does not throw if no CUDA runtime is found: then `available` is false, and `searched` says why.
  static CudaRuntime open(const std::vector<std::string>& directories);

  // Opens only the file `path`, which is absolute. Throws CudaError with the reason if the file is not a
  // usable CUDA runtime.
  static CudaRuntime open_file(const std::string& path);

  bool available() const { return !path_.empty(); }
  const std::string& path() const { return path_; }

  // The files that were tried and not used, each with the reason.
  const std::vector<std::string>& searched() const { return searched_; }

  // Unless noexcept, the methods below throw CudaError if no runtime is available or if a call fails. A
  // failed call clears the runtime's last error, so cudaGetLastError does not report it to another caller.

  // 1000 * major + 10 * minor, as CUDA counts. `driver_version` is the newest runtime version that the driver
  // supports; it is 0 if no driver is installed.
  int version() const;
  int driver_version() const;

  // Lists the devices. Initializes the driver, but creates no context.
  std::vector<CudaDevice> devices() const;

  // The calling thread's current device.
  int device() const;
  void set_device(int device) const;

  // Page-locked memory, which every device can use under the same address. Throws OutOfMemory if `bytes`
  // cannot be allocated or page-locked.
  void* alloc_host(std::size_t bytes) const;
  void free_host(void* memory) const noexcept;
  void register_host(void* memory, std::size_t bytes) const;
  void unregister_host(void* memory) const noexcept;

  // Every method that takes a stream works with any current device. So does every method that takes only
  // events.

  // A stream of `device` that does not synchronize with the legacy default stream.
  Stream create_stream(int device) const;
  void destroy_stream(Stream stream) const noexcept;
  void synchronize_stream(Stream stream) const;

  // Whether `stream` captures the work that is queued on it in a graph.
  bool is_capturing(Stream stream) const;

  // Sets the capture mode of the calling thread, and returns the earlier one. The relaxed mode is 2: see
  // RelaxedCaptureMode in cuda_runtime.cpp.
  int exchange_capture_mode(int mode) const;

  // An event of `device`, without timing. It can be recorded only on streams of that device. Streams of any
  // device can wait for it.
  Event create_event(int device) const;
  void destroy_event(Event event) const noexcept;
  void record(Event event, Stream stream) const;
  // Whether `event` is complete. An event that was never recorded is complete.
  bool is_done(Event event) const;
  void synchronize(Event event) const;

  // Whether `event` is complete or the device is lost. On a lost device every call fails, and no queued work
  // reads or writes memory any more.
  bool is_done_or_lost(Event event) const;

  // Work that is queued on `stream` from now on waits for the work before the last recording of `event`. If
  // `event` was never recorded, that work does not wait.
  void wait_event(Stream stream, Event event) const;

  // Work that is queued on `stream` from now on waits until the host stores `value`, or a value that is up to
  // 2^31 - 1 greater, at `address` in page-locked memory. Until then every call that synchronizes with the
  // device blocks, so the thread that stores the value must not wait for such a call.
  void wait_value(Stream stream, std::uint32_t* address, std::uint32_t value) const;

  void copy_async(void* destination, const void* source, std::size_t bytes, Stream stream) const;

  // Copies `height` rows of `width` bytes. The rows begin `pitch` bytes apart in the destination and
  // `source_pitch` bytes apart in the source; both are at least `width` and at most kMaxPitch.
  void copy_2d_async(void* destination, std::size_t pitch, const void* source, std::size_t source_pitch,
                     std::size_t width, std::size_t height, Stream stream) const;
  static constexpr std::size_t kMaxPitch = 0x7FFFFFFF;  // cudaDeviceProp::memPitch of every device

  // Queues several copies, in one call if the runtime has cudaMemcpyBatchAsync. The copies may run in any
  // order. Throws std::invalid_argument if `stream` is a default stream.
  void copy_batch_async(const std::vector<void*>& destinations, const std::vector<const void*>& sources,
                        const std::vector<std::size_t>& bytes, Stream stream) const;

 private:
  bool try_open(const std::string& name, int flags, const std::string& label);
  bool try_open_file(const std::string& path, int flags, const std::string& label);
  bool try_search_path_of_loader();
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
