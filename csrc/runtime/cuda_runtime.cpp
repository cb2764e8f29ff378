#include "runtime/cuda_runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "runtime/device_guard.h"
#include "runtime/error.h"

#define VITCACHE_CUDA_CALL(name, ...) check(functions().name(__VA_ARGS__), #name, __FILE__, __LINE__)

namespace vitcache {
namespace {

// The table's signatures were checked for these major versions.
constexpr const char* kLibraries[] = {"libcudart.so.13", "libcudart.so.12"};
constexpr const char* kToolkitDirectory = "/usr/local/cuda/lib64";

constexpr const char* kDriver = "libcuda.so.1";

constexpr int kSuccess = 0;
constexpr int kMemoryAllocation = 2;  // cudaErrorMemoryAllocation
constexpr int kNotReady = 600;        // cudaErrorNotReady
constexpr unsigned kPortable = 1;     // cudaHostAllocPortable, cudaHostRegisterPortable
constexpr unsigned kMapped = 2;
constexpr unsigned kNonBlocking = 1;         // cudaStreamNonBlocking
constexpr unsigned kDisableTiming = 2;       // cudaEventDisableTiming
constexpr unsigned kGreaterOrEqual = 0;      // CU_STREAM_WAIT_VALUE_GEQ
constexpr int kCaptureModeRelaxed = 2;       // cudaStreamCaptureModeRelaxed
constexpr int kNoCapture = 0;                // cudaStreamCaptureStatusNone
constexpr int kDefaultKind = 4;              // cudaMemcpyDefault: the addresses tell the direction
constexpr int kBatchVersion = 12080;         // the first runtime with cudaMemcpyBatchAsync
constexpr int kBatchVersion13 = 13000;       // the first whose cudaMemcpyBatchAsync has no `failIdx`
constexpr int kComputeCapabilityMajor = 75;  // cudaDevAttrComputeCapabilityMajor
constexpr int kComputeCapabilityMinor = 76;
constexpr std::size_t kNameBytes = 256;
constexpr std::size_t kPropertiesBytes = 16384;  // cudaDeviceProp: about 1 KB, and larger in newer versions

std::string environment(const char* name) {
  const char* value =
      std::getenv(name);  // NOLINT(concurrency-mt-unsafe): vitcache never writes the environment
  return value == nullptr ? "" : value;
}

std::string loader_error() {
  const char* error = dlerror();  // NOLINT(concurrency-mt-unsafe): glibc and musl store the error per thread
  return error == nullptr ? "unknown error of the loader" : error;
}

// Returns the address of `name`. If `library` lacks it, returns nullptr and stores the name in `missing`.
void* find_symbol(void* library, const char* name, std::string& missing) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) missing = name;
  return symbol;
}

// Puts the calling thread in the relaxed capture mode for a scope. While any thread captures a graph, a call
// that may wait for the device fails and invalidates the capture, unless its thread is in this mode. A thread
// may use this mode if its calls do not touch the captured work; calls of vitcache never do.
class RelaxedCaptureMode {
 public:
  explicit RelaxedCaptureMode(const CudaFunctions& functions) : functions_(functions) { exchange(); }
  RelaxedCaptureMode(const RelaxedCaptureMode&) = delete;
  RelaxedCaptureMode& operator=(const RelaxedCaptureMode&) = delete;
  ~RelaxedCaptureMode() { exchange(); }

 private:
  void exchange() { functions_.cudaThreadExchangeStreamCaptureMode(&mode_); }

  const CudaFunctions& functions_;
  int mode_ = kCaptureModeRelaxed;
};

bool is_absolute(const std::string& path) { return !path.empty() && path.front() == '/'; }

// The entries of LD_LIBRARY_PATH. An empty or relative entry names a folder of the working directory.
std::vector<std::string> library_path() {
  std::vector<std::string> entries;
  const std::string path = environment("LD_LIBRARY_PATH");
  if (path.empty()) return entries;
  std::size_t begin = 0;
  for (std::size_t end; begin <= path.size(); begin = end + 1) {
    end = std::min(path.find_first_of(":;", begin), path.size());
    entries.push_back(path.substr(begin, end - begin));
  }
  return entries;
}

// Whether the loader, asked for a library by name, searches absolute folders only.
bool is_loader_safe() {
  const std::vector<std::string> entries = library_path();
  return std::all_of(entries.begin(), entries.end(), is_absolute);
}

// Finds a function of the driver: in the runtime's library if that exports it (the stand-in does), else in
// libcuda, which a real runtime has loaded.
void* find_driver_symbol(void* runtime, const char* name) {
  if (void* symbol = dlsym(runtime, name); symbol != nullptr) return symbol;
  void* driver = dlopen(kDriver, is_loader_safe() ? RTLD_NOW : RTLD_NOW | RTLD_NOLOAD);
  return driver == nullptr ? nullptr : dlsym(driver, name);
}

}  // namespace

CudaRuntime CudaRuntime::open_file(const std::string& path) {
  CudaRuntime runtime;
  VITCACHE_CHECK(runtime.try_open_file(path, RTLD_NOW | RTLD_LOCAL, "given file"), CudaError,
                 "no CUDA runtime: " + runtime.searched_.back());
  return runtime;
}

CudaRuntime CudaRuntime::open(const std::vector<std::string>& directories) {
  CudaRuntime runtime;
  const std::string no_cuda = environment("VITCACHE_NO_CUDA");
  if (!no_cuda.empty() && no_cuda != "0") {
    runtime.searched_.push_back("VITCACHE_NO_CUDA is " + no_cuda + ": the search is disabled");
    return runtime;
  }
  const std::string named_file = environment("VITCACHE_CUDART");
  if (!named_file.empty()) {
    runtime.try_open_file(named_file, RTLD_NOW, "VITCACHE_CUDART");
    return runtime;
  }
  for (const char* library : kLibraries)
    if (runtime.try_open(library, RTLD_NOW | RTLD_NOLOAD, "already loaded")) return runtime;
  for (const std::string& directory : directories)
    for (const char* library : kLibraries)
      if (runtime.try_open_file(directory + "/" + library, RTLD_NOW, "given directory")) return runtime;
  if (runtime.try_search_path_of_loader()) return runtime;
  for (const char* library : kLibraries)
    if (runtime.try_open(std::string(kToolkitDirectory) + "/" + library, RTLD_NOW, "CUDA toolkit"))
      return runtime;
  return runtime;
}

bool CudaRuntime::try_search_path_of_loader() {
  if (is_loader_safe()) {
    for (const char* library : kLibraries)
      if (try_open(library, RTLD_NOW, "search path of the loader")) return true;
    return false;
  }
  for (const std::string& directory : library_path()) {
    if (!is_absolute(directory)) {
      searched_.push_back("LD_LIBRARY_PATH has the entry '" + directory +
                          "', it must be an absolute path: the search path of the loader is not searched");
      continue;
    }
    for (const char* library : kLibraries)
      if (try_open_file(directory + "/" + library, RTLD_NOW, "LD_LIBRARY_PATH")) return true;
  }
  return false;
}

bool CudaRuntime::try_open_file(const std::string& path, int flags, const std::string& label) {
  if (is_absolute(path)) return try_open(path, flags, label);
  searched_.push_back(path + " (" + label + "): it must be an absolute path");
  return false;
}

bool CudaRuntime::try_open(const std::string& name, int flags, const std::string& label) {
  static_cast<void>(loader_error());  // clears the error of an earlier call
  void* library = dlopen(name.c_str(), flags);
  if (library == nullptr) {
    const bool only_if_loaded = (flags & RTLD_NOLOAD) != 0;
    searched_.push_back(name + " (" + label + "): " + (only_if_loaded ? "it is not loaded" : loader_error()));
    return false;
  }
  std::string missing;
  CudaFunctions loaded;
  // NOLINTBEGIN(bugprone-macro-parentheses): a declarator
#define VITCACHE_FIND(result, name, parameters) \
  loaded.name = reinterpret_cast<result(*) parameters>(find_symbol(library, #name, missing));
  VITCACHE_CUDA_FUNCTIONS(VITCACHE_FIND)
#undef VITCACHE_FIND
  // NOLINTEND(bugprone-macro-parentheses)
  if (!missing.empty()) {
    searched_.push_back(name + " (" + label + "): has no " + missing);
    dlclose(library);
    return false;
  }
  functions_ = loaded;
  optional_.cuStreamWaitValue32_v2 = reinterpret_cast<decltype(optional_.cuStreamWaitValue32_v2)>(
      find_driver_symbol(library, "cuStreamWaitValue32_v2"));
  optional_.cudaMemcpyBatchAsync = dlsym(library, "cudaMemcpyBatchAsync");
  Dl_info info;
  path_ = dladdr(reinterpret_cast<void*>(loaded.cudaRuntimeGetVersion), &info) != 0 ? info.dli_fname : name;
  return true;
}

const CudaFunctions& CudaRuntime::functions() const {
  VITCACHE_CHECK(available(), CudaError,
                 "no CUDA runtime: tried " + std::to_string(searched_.size()) + " files, the last was " +
                     searched_.back());
  return functions_;
}

void CudaRuntime::check(int status, const char* call, const char* file, int line) const {
  if (status == kSuccess) return;
  functions_.cudaGetLastError();
  throw CudaError(call, status, functions_.cudaGetErrorName(status), functions_.cudaGetErrorString(status),
                  file, line);
}

void CudaRuntime::ignore(int status) const noexcept {
  if (status != kSuccess) functions_.cudaGetLastError();
}

void CudaRuntime::check_memory(int status, std::size_t bytes, const char* call, const char* file,
                               int line) const {
  if (status == kMemoryAllocation) {
    functions_.cudaGetLastError();
    throw OutOfMemory(std::string(call) + ": cannot page-lock " + std::to_string(bytes) +
                      " bytes: too little memory is free, or the process may not page-lock more");
  }
  check(status, call, file, line);
}

int CudaRuntime::version() const {
  int version = 0;
  VITCACHE_CUDA_CALL(cudaRuntimeGetVersion, &version);
  return version;
}

int CudaRuntime::driver_version() const {
  int version = 0;
  VITCACHE_CUDA_CALL(cudaDriverGetVersion, &version);
  return version;
}

std::vector<CudaDevice> CudaRuntime::devices() const {
  int count = 0;
  VITCACHE_CUDA_CALL(cudaGetDeviceCount, &count);
  std::vector<CudaDevice> devices;
  alignas(std::max_align_t) char properties[kPropertiesBytes];
  for (int device = 0; device < count; ++device) {
    CudaDevice described{};
    VITCACHE_CUDA_CALL(cudaGetDeviceProperties, properties, device);
    VITCACHE_CUDA_CALL(cudaDeviceGetAttribute, &described.major, kComputeCapabilityMajor, device);
    VITCACHE_CUDA_CALL(cudaDeviceGetAttribute, &described.minor, kComputeCapabilityMinor, device);
    described.name.assign(properties, strnlen(properties, kNameBytes));
    devices.push_back(described);
  }
  return devices;
}

int CudaRuntime::device() const {
  int device = 0;
  VITCACHE_CUDA_CALL(cudaGetDevice, &device);
  return device;
}

void CudaRuntime::set_device(int device) const { VITCACHE_CUDA_CALL(cudaSetDevice, device); }

void* CudaRuntime::alloc_host(std::size_t bytes) const {
  void* memory = nullptr;
  const RelaxedCaptureMode relaxed(functions());
  const int status = functions_.cudaHostAlloc(&memory, bytes, kPortable | kMapped);
  check_memory(status, bytes, "cudaHostAlloc", __FILE__, __LINE__);
  return memory;
}

void CudaRuntime::free_host(void* memory) const noexcept {
  const RelaxedCaptureMode relaxed(functions_);
  ignore(functions_.cudaFreeHost(memory));
}

void CudaRuntime::register_host(void* memory, std::size_t bytes) const {
  const RelaxedCaptureMode relaxed(functions());
  const int status = functions_.cudaHostRegister(memory, bytes, kPortable | kMapped);
  check_memory(status, bytes, "cudaHostRegister", __FILE__, __LINE__);
}

void CudaRuntime::unregister_host(void* memory) const noexcept {
  const RelaxedCaptureMode relaxed(functions_);
  ignore(functions_.cudaHostUnregister(memory));
}

Stream CudaRuntime::create_stream(int device) const {
  const DeviceGuard guard(*this, device);
  Stream stream(nullptr, device);
  VITCACHE_CUDA_CALL(cudaStreamCreateWithFlags, &stream.handle, kNonBlocking);
  return stream;
}

void CudaRuntime::destroy_stream(Stream stream) const noexcept {
  ignore(functions_.cudaStreamDestroy(stream.handle));
}

void CudaRuntime::synchronize_stream(Stream stream) const {
  const StreamGuard guard(*this, stream);
  const RelaxedCaptureMode relaxed(functions());
  VITCACHE_CUDA_CALL(cudaStreamSynchronize, stream.handle);
}

bool CudaRuntime::is_capturing(Stream stream) const {
  const StreamGuard guard(*this, stream);
  int status = kNoCapture;
  VITCACHE_CUDA_CALL(cudaStreamIsCapturing, stream.handle, &status);
  return status != kNoCapture;
}

int CudaRuntime::exchange_capture_mode(int mode) const {
  VITCACHE_CUDA_CALL(cudaThreadExchangeStreamCaptureMode, &mode);
  return mode;
}

Event CudaRuntime::create_event(int device) const {
  const DeviceGuard guard(*this, device);
  Event event(nullptr);
  VITCACHE_CUDA_CALL(cudaEventCreateWithFlags, &event.handle, kDisableTiming);
  return event;
}

void CudaRuntime::destroy_event(Event event) const noexcept {
  ignore(functions_.cudaEventDestroy(event.handle));
}

void CudaRuntime::record(Event event, Stream stream) const {
  const StreamGuard guard(*this, stream);
  VITCACHE_CUDA_CALL(cudaEventRecord, event.handle, stream.handle);
}

bool CudaRuntime::is_done(Event event) const {
  const RelaxedCaptureMode relaxed(functions());
  const int status = functions_.cudaEventQuery(event.handle);
  if (status == kNotReady) {
    functions_.cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery", __FILE__, __LINE__);
  return true;
}

void CudaRuntime::synchronize(Event event) const {
  const RelaxedCaptureMode relaxed(functions());
  VITCACHE_CUDA_CALL(cudaEventSynchronize, event.handle);
}

bool CudaRuntime::is_done_or_lost(Event event) const {
  // One query may fail although the device works. A wrong true would let the caller reuse memory that the
  // device still accesses, so only a second failure counts as a lost device.
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      return is_done(event);
    } catch (const CudaError&) {
    }
  }
  return true;
}

void CudaRuntime::wait_event(Stream stream, Event event) const {
  const StreamGuard guard(*this, stream);
  VITCACHE_CUDA_CALL(cudaStreamWaitEvent, stream.handle, event.handle, 0);
}

void CudaRuntime::wait_value(Stream stream, std::uint32_t* address, std::uint32_t value) const {
  VITCACHE_CHECK(optional_.cuStreamWaitValue32_v2 != nullptr, CudaError,
                 std::string(kDriver) + " has no cuStreamWaitValue32_v2");
  const StreamGuard guard(*this, stream);
  // The driver and the runtime use the same error codes.
  const int status = optional_.cuStreamWaitValue32_v2(
      stream.handle, reinterpret_cast<std::uintptr_t>(address), value, kGreaterOrEqual);
  check(status, "cuStreamWaitValue32", __FILE__, __LINE__);
}

void CudaRuntime::copy_async(void* destination, const void* source, std::size_t bytes, Stream stream) const {
  const StreamGuard guard(*this, stream);
  VITCACHE_CUDA_CALL(cudaMemcpyAsync, destination, source, bytes, kDefaultKind, stream.handle);
}

void CudaRuntime::copy_2d_async(void* destination, std::size_t pitch, const void* source,
                                std::size_t source_pitch, std::size_t width, std::size_t height,
                                Stream stream) const {
  const StreamGuard guard(*this, stream);
  VITCACHE_CUDA_CALL(cudaMemcpy2DAsync, destination, pitch, source, source_pitch, width, height, kDefaultKind,
                     stream.handle);
}

void CudaRuntime::copy_batch_async(const std::vector<void*>& destinations,
                                   const std::vector<const void*>& sources,
                                   const std::vector<std::size_t>& bytes, Stream stream) const {
  VITCACHE_CHECK(!stream.is_of_current_device(), std::invalid_argument,
                 "a batch of copies cannot be queued on a default stream");
  VITCACHE_CHECK(destinations.size() == bytes.size() && sources.size() == bytes.size(), std::invalid_argument,
                 "expected equal numbers, got " + std::to_string(destinations.size()) + " destinations, " +
                     std::to_string(sources.size()) + " sources and " + std::to_string(bytes.size()) +
                     " sizes");
  if (bytes.empty()) return;
  const int version = optional_.cudaMemcpyBatchAsync == nullptr ? 0 : this->version();
  if (version < kBatchVersion || driver_version() < kBatchVersion) {
    for (std::size_t i = 0; i < bytes.size(); ++i) copy_async(destinations[i], sources[i], bytes[i], stream);
    return;
  }
  CudaCopyAttributes attributes;  // they apply to all copies from index `first` on
  std::size_t first = 0;
  int status;
  if (version >= kBatchVersion13) {
    status = reinterpret_cast<CudaOptionalFunctions::BatchCopy13>(optional_.cudaMemcpyBatchAsync)(
        destinations.data(), sources.data(), bytes.data(), bytes.size(), &attributes, &first, 1,
        stream.handle);
  } else {
    std::size_t failed = 0;
    status = reinterpret_cast<CudaOptionalFunctions::BatchCopy12>(optional_.cudaMemcpyBatchAsync)(
        const_cast<void**>(destinations.data()), const_cast<void**>(sources.data()),
        const_cast<std::size_t*>(bytes.data()), bytes.size(), &attributes, &first, 1, &failed, stream.handle);
  }
  check(status, "cudaMemcpyBatchAsync", __FILE__, __LINE__);
}

}  // namespace vitcache
