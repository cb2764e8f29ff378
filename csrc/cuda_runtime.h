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
// Thread rule: immutable after `open`; every method may be called from any thread. The library is never
// closed, since the driver's threads may run in it until the process ends.
#pragma once

#include <string>
#include <vector>

namespace vitcache {

// One line per entry point: result, name, parameters. Only what kept its signature from CUDA 12 to 13 belongs
// here. The properties begin with `char name[256]` in every version, and no more of them is read.
#define VITCACHE_CUDA_FUNCTIONS(FUNCTION)                     \
  FUNCTION(const char*, cudaGetErrorName, (int))              \
  FUNCTION(const char*, cudaGetErrorString, (int))            \
  FUNCTION(int, cudaGetLastError, ())                         \
  FUNCTION(int, cudaRuntimeGetVersion, (int*))                \
  FUNCTION(int, cudaDriverGetVersion, (int*))                 \
  FUNCTION(int, cudaGetDeviceCount, (int*))                   \
  FUNCTION(int, cudaGetDeviceProperties, (void*, int device)) \
  FUNCTION(int, cudaDeviceGetAttribute, (int*, int attribute, int device))

struct CudaFunctions {
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

 private:
  bool try_open(const std::string& name, int flags, const std::string& label);
  const CudaFunctions& functions() const;
  void check(int status, const char* call, const char* file, int line) const;

  CudaFunctions functions_;
  std::string path_;
  std::vector<std::string> searched_;
};

}  // namespace vitcache
