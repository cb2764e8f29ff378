#include "cuda_runtime.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "error.h"

#define VITCACHE_CUDA_CALL(name, ...) check(functions().name(__VA_ARGS__), #name, __FILE__, __LINE__)

namespace vitcache {
namespace {

// The major versions whose signatures the table was checked against.
constexpr const char* kLibraries[] = {"libcudart.so.13", "libcudart.so.12"};
constexpr const char* kToolkitDirectory = "/usr/local/cuda/lib64";

constexpr int kSuccess = 0;
constexpr int kComputeCapabilityMajor = 75;  // cudaDevAttrComputeCapabilityMajor
constexpr int kComputeCapabilityMinor = 76;
constexpr std::size_t kNameBytes = 256;
constexpr std::size_t kPropertiesBytes = 16384;  // the struct takes about 1 KB and grows with every version

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string loader_error() {
  const char* error = dlerror();
  return error == nullptr ? "unknown error of the loader" : error;
}

// The address of `name`, or nullptr, in which case `missing` keeps the name.
void* find_symbol(void* library, const char* name, std::string& missing) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) missing = name;
  return symbol;
}

}  // namespace

CudaRuntime CudaRuntime::open(const std::vector<std::string>& directories) {
  CudaRuntime runtime;
  const std::string off = environment("VITCACHE_NO_CUDA");
  if (!off.empty() && off != "0") {
    runtime.searched_.push_back("VITCACHE_NO_CUDA is " + off + ": not looked for");
    return runtime;
  }
  const std::string chosen = environment("VITCACHE_CUDART");
  if (!chosen.empty()) {
    runtime.try_open(chosen, RTLD_NOW, "VITCACHE_CUDART");
    return runtime;
  }
  for (const char* library : kLibraries)
    if (runtime.try_open(library, RTLD_NOW | RTLD_NOLOAD, "already loaded")) return runtime;
  for (const std::string& directory : directories)
    for (const char* library : kLibraries)
      if (runtime.try_open(directory + "/" + library, RTLD_NOW, "given directory")) return runtime;
  for (const char* library : kLibraries)
    if (runtime.try_open(library, RTLD_NOW, "search path of the loader")) return runtime;
  for (const char* library : kLibraries)
    if (runtime.try_open(std::string(kToolkitDirectory) + "/" + library, RTLD_NOW, "CUDA toolkit"))
      return runtime;
  return runtime;
}

bool CudaRuntime::try_open(const std::string& name, int flags, const std::string& label) {
  dlerror();
  void* library = dlopen(name.c_str(), flags);
  if (library == nullptr) {
    const bool only_asked = (flags & RTLD_NOLOAD) != 0;
    searched_.push_back(name + " (" + label + "): " + (only_asked ? "no" : loader_error()));
    return false;
  }
  std::string missing;
  CudaFunctions found;
#define VITCACHE_FIND(result, name, parameters) \
  found.name = reinterpret_cast<result(*) parameters>(find_symbol(library, #name, missing));
  VITCACHE_CUDA_FUNCTIONS(VITCACHE_FIND)
#undef VITCACHE_FIND
  if (!missing.empty()) {
    searched_.push_back(name + " (" + label + "): has no " + missing);
    dlclose(library);
    return false;
  }
  functions_ = found;
  Dl_info where;
  path_ = dladdr(reinterpret_cast<void*>(found.cudaRuntimeGetVersion), &where) != 0 ? where.dli_fname : name;
  return true;
}

const CudaFunctions& CudaRuntime::functions() const {
  VITCACHE_CHECK(available(), CudaError,
                 "no CUDA runtime: tried " + std::to_string(searched_.size()) + " places, the last was " +
                     searched_.back());
  return functions_;
}

void CudaRuntime::check(int status, const char* call, const char* file, int line) const {
  if (status == kSuccess) return;
  functions_.cudaGetLastError();
  throw CudaError(call, status, functions_.cudaGetErrorName(status), functions_.cudaGetErrorString(status),
                  file, line);
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
    CudaDevice found{};
    VITCACHE_CUDA_CALL(cudaGetDeviceProperties, properties, device);
    VITCACHE_CUDA_CALL(cudaDeviceGetAttribute, &found.major, kComputeCapabilityMajor, device);
    VITCACHE_CUDA_CALL(cudaDeviceGetAttribute, &found.minor, kComputeCapabilityMinor, device);
    found.name.assign(properties, strnlen(properties, kNameBytes));
    devices.push_back(found);
  }
  return devices;
}

}  // namespace vitcache
