// A CUDA runtime that has as many devices as FAKE_CUDART_DEVICES says, and fails with FAKE_CUDART_ERROR if
// that is set.
#include <cstdio>
#include <cstdlib>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidDevice = 101;

int last_error = kSuccess;

int number(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

int result(int status) {
  if (status != kSuccess) last_error = status;
  return status;
}

bool has(int device) { return device >= 0 && device < number("FAKE_CUDART_DEVICES"); }

}  // namespace

EXPORT const char* cudaGetErrorName(int) { return "cudaErrorFake"; }
EXPORT const char* cudaGetErrorString(int) { return "the fake was told to fail"; }

EXPORT int cudaGetLastError() {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}

EXPORT int cudaRuntimeGetVersion(int* version) {
  *version = 12080;
  return kSuccess;
}

EXPORT int cudaDriverGetVersion(int* version) {
  *version = 13010;
  return kSuccess;
}

EXPORT int cudaGetDeviceCount(int* count) {
  *count = number("FAKE_CUDART_DEVICES");
  return result(number("FAKE_CUDART_ERROR"));
}

EXPORT int cudaGetDeviceProperties(void* properties, int device) {
  if (!has(device)) return result(kInvalidDevice);
  std::snprintf(static_cast<char*>(properties), 256, "Fake GPU %d", device);
  return kSuccess;
}

EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (!has(device)) return result(kInvalidDevice);
  *value = attribute == 75 ? 9 : device;
  return kSuccess;
}
