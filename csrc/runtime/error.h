// The exceptions of the native code, and the Python exceptions that they become:
//   std::invalid_argument -> ValueError, std::out_of_range -> IndexError, std::bad_alloc -> MemoryError,
//   std::runtime_error -> RuntimeError (pybind11 translates these four)
//   OutOfMemory -> MemoryError, RingTimeout -> TimeoutError, CudaError -> vitcache.CudaError
// A message names the argument, the value that was given and the value that was expected.
#pragma once

#include <stdexcept>
#include <string>

namespace vitcache {

// A call of the CUDA runtime failed, or no CUDA runtime is available.
class CudaError : public std::runtime_error {
 public:
  explicit CudaError(const std::string& message) : std::runtime_error(message) {}

  // `name` and `text` are the runtime's own description of `code`. `file` and `line` name the line that made
  // the call.
  CudaError(const std::string& call, int code, const std::string& name, const std::string& text,
            const char* file, int line)
      : std::runtime_error(call + ": " + name + " (" + std::to_string(code) + "), " + text + " [" + file +
                           ":" + std::to_string(line) + "]") {}
};

// Memory cannot be allocated, or cannot be page-locked.
class OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace vitcache

// Throws `exception` if `condition` is false. The message is built only then.
#define VITCACHE_CHECK(condition, exception, message) \
  do {                                                \
    if (!(condition)) throw exception(message);       \
  } while (false)
