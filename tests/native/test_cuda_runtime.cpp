#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runtime.h"
#include "error.h"

namespace {

using vitcache::CudaError;
using vitcache::CudaRuntime;

void set_environment(const char* cudart, const char* no_cuda, const char* devices, const char* error) {
  setenv("VITCACHE_CUDART", cudart, 1);
  setenv("VITCACHE_NO_CUDA", no_cuda, 1);
  setenv("FAKE_CUDART_DEVICES", devices, 1);
  setenv("FAKE_CUDART_ERROR", error, 1);
}

// Before any fake is loaded, so that "already loaded" cannot be the one that is found.
void a_given_directory_is_searched() {
  set_environment("", "", "0", "0");
  const std::filesystem::path directory =
      std::filesystem::temp_directory_path() / ("vitcache-" + std::to_string(getpid()));
  std::filesystem::create_directory(directory);
  std::filesystem::copy_file(FAKE_CUDART, directory / "libcudart.so.12");
  const CudaRuntime runtime = CudaRuntime::open({"/nonexistent", directory.string()});
  CHECK_EQUAL(runtime.path(), (directory / "libcudart.so.12").string());
  std::filesystem::remove_all(directory);
}

void devices_are_listed() {
  set_environment(FAKE_CUDART, "", "2", "0");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(runtime.available());
  CHECK_EQUAL(runtime.path(), std::string(FAKE_CUDART));
  CHECK_EQUAL(runtime.version(), 12080);
  CHECK_EQUAL(runtime.driver_version(), 13010);
  const std::vector<vitcache::CudaDevice> devices = runtime.devices();
  CHECK_EQUAL(devices.size(), std::size_t{2});
  CHECK_EQUAL(devices[1].name, "Fake GPU 1");
  CHECK_EQUAL(devices[1].major, 9);
  CHECK_EQUAL(devices[1].minor, 1);
}

void a_failed_call_says_what_failed_and_leaves_no_error_behind() {
  set_environment(FAKE_CUDART, "", "0", "35");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK_THROWS(runtime.devices(), CudaError,
               "cudaGetDeviceCount: cudaErrorFake (35), the fake was told to fail [csrc/cuda_runtime.cpp:");
  void* fake = dlopen(FAKE_CUDART, RTLD_NOW | RTLD_NOLOAD);
  CHECK(fake != nullptr);
  const auto last_error = reinterpret_cast<int (*)()>(dlsym(fake, "cudaGetLastError"));
  CHECK_EQUAL(last_error(), 0);
}

void a_chosen_file_that_is_missing_is_not_replaced_by_another() {
  set_environment("/nonexistent/libcudart.so", "", "0", "0");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(!runtime.available());
  CHECK_EQUAL(runtime.searched().size(), std::size_t{1});
  CHECK_THROWS(runtime.version(), CudaError, "/nonexistent/libcudart.so");
  CHECK_THROWS(runtime.devices(), CudaError, "no CUDA runtime");
}

void a_library_without_the_entry_points_is_refused_by_name() {
  set_environment(NOT_CUDART, "", "0", "0");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(!runtime.available());
  CHECK(runtime.searched().back().find("has no cuda") != std::string::npos);
}

void the_search_can_be_turned_off() {
  set_environment(FAKE_CUDART, "1", "2", "0");
  const CudaRuntime off = CudaRuntime::open({});
  CHECK(!off.available());
  CHECK(off.searched().back().find("VITCACHE_NO_CUDA") != std::string::npos);
  set_environment(FAKE_CUDART, "0", "2", "0");
  CHECK(CudaRuntime::open({}).available());
}

}  // namespace

int main() {
  a_given_directory_is_searched();
  devices_are_listed();
  a_failed_call_says_what_failed_and_leaves_no_error_behind();
  a_chosen_file_that_is_missing_is_not_replaced_by_another();
  a_library_without_the_entry_points_is_refused_by_name();
  the_search_can_be_turned_off();
}
