// What the native code throws, and what Python sees of it:
//   std::invalid_argument -> ValueError, std::out_of_range -> IndexError, std::bad_alloc -> MemoryError
//   (pybind11's own translation), OutOfMemory -> MemoryError, CudaError -> vitcache.CudaError. A message
//   names the thing and both numbers, what is and what may be.
#pragma once

#include <stdexcept>
#include <string>

namespace vitcache {

// A call of the CUDA runtime failed, or there is no CUDA runtime to call.
class CudaError : public std::runtime_error {
 public:
  explicit CudaError(const std::string& message) : std::runtime_error(message) {}

  // `name` and `text` are the runtime's own words for `code`; `file` and `line` say who called.
  CudaError(const std::string& call, int code, const std::string& name, const std::string& text,
            const char* file, int line)
      : std::runtime_error(call + ": " + name + " (" + std::to_string(code) + "), " + text + " [" + file +
                           ":" + std::to_string(line) + "]") {}
};

// So much memory, or page-locked memory, is not to be had.
class OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace vitcache

// The message is built only if the condition does not hold.
#define VITCACHE_CHECK(condition, exception, message) \
  do {                                                \
    if (!(condition)) throw exception(message);       \
  } while (false)
