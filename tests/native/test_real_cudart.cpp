// A real libcudart, on a machine without a driver: test_real_cudart FILE VERSION. CMake runs it once for each
// pinned runtime, because a process should load only one.
#include <dlfcn.h>

#include <cstdint>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "check.h"
#include "ring/ring.h"
#include "runtime/cuda_runtime.h"
#include "runtime/error.h"

namespace {

using vitcache::CudaError;
using vitcache::CudaRuntime;
using vitcache::Event;
using vitcache::Stream;

void every_symbol_of_the_table_is_found(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  CHECK(library != nullptr);
#define VITCACHE_CHECK_SYMBOL(result, name, parameters) CHECK(dlsym(library, #name) != nullptr);
  VITCACHE_CUDA_FUNCTIONS(VITCACHE_CHECK_SYMBOL)
#undef VITCACHE_CHECK_SYMBOL
  CHECK(dlsym(library, "cudaMemcpyBatchAsync") != nullptr);
}

// The message is `call`: `name` (`number`), the text of the real library.
void check_error(const std::function<void()>& call, const std::string& expected) {
  CHECK_THROWS(call(), CudaError, expected);
}

void every_call_without_a_driver_is_a_cuda_error(const vitcache::SharedRuntime& runtime) {
  const std::string no_driver = "cudaErrorInsufficientDriver (35), CUDA driver version is insufficient";
  const Stream stream(nullptr, 0);
  const Event event(nullptr);
  std::uint32_t value = 0;
  check_error([&] { runtime->devices(); }, "cudaGetDeviceCount: " + no_driver);
  check_error([&] { runtime->set_device(0); }, "cudaSetDevice: " + no_driver);
  check_error([&] { runtime->create_stream(0); }, no_driver);
  check_error([&] { runtime->create_event(0); }, no_driver);
  check_error([&] { runtime->alloc_host(64); }, "cudaHostAlloc: " + no_driver);
  check_error([&] { runtime->register_host(&value, sizeof value); }, "cudaHostRegister: " + no_driver);
  check_error([&] { runtime->synchronize_stream(stream); }, no_driver);
  check_error([&] { static_cast<void>(runtime->is_capturing(stream)); }, no_driver);
  check_error([&] { runtime->copy_async(&value, &value, 0, stream); }, no_driver);
  check_error([&] { runtime->record(event, stream); }, no_driver);
  check_error([&] { runtime->wait_event(stream, event); }, no_driver);
  check_error([&] { runtime->synchronize(event); }, "cudaEventSynchronize: cudaError");
  check_error([&] { static_cast<void>(runtime->is_done(event)); }, "cudaEventQuery: cudaError");
  CHECK(runtime->is_done_or_lost(event));
  check_error([&] { runtime->wait_value(stream, &value, 0); }, "libcuda.so.1 has no cuStreamWaitValue32_v2");
  check_error([&] { vitcache::Ring(runtime, vitcache::RingOptions{1 << 16, 1, 1 << 13, 0, {}}); },
              "cudaErrorInsufficientDriver (35)");
  runtime->free_host(nullptr);
  runtime->unregister_host(&value);
  runtime->destroy_event(event);
}

}  // namespace

int main(int count, char** arguments) {
  CHECK_EQUAL(count, 3);
  const char* const path = arguments[1];
  every_symbol_of_the_table_is_found(path);
  const auto runtime = std::make_shared<const CudaRuntime>(CudaRuntime::open_file(path));
  CHECK(runtime->available());
  CHECK_EQUAL(std::to_string(runtime->version()), std::string(arguments[2]));
  if (runtime->driver_version() == 0)
    every_call_without_a_driver_is_a_cuda_error(runtime);
  else
    std::cout << "a driver is installed: the errors without one were not checked\n";
}
