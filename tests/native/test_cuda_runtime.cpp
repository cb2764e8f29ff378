#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "runtime/cuda_runtime.h"
#include "runtime/error.h"
#include "stand_in.h"

namespace {

using vitcache::CudaError;
using vitcache::CudaRuntime;
using vitcache::Event;
using vitcache::Stream;

// Code that passes a stream for an event, or a pointer for a stream or an event, does not compile.
template <typename First, typename Second>
constexpr bool kCanRecord = std::is_invocable_v<decltype(&CudaRuntime::record), CudaRuntime, First, Second>;
template <typename First, typename Second>
constexpr bool kCanWait = std::is_invocable_v<decltype(&CudaRuntime::wait_event), CudaRuntime, First, Second>;
static_assert(kCanRecord<Event, Stream> && kCanWait<Stream, Event>);
static_assert(!kCanRecord<Stream, Event> && !kCanWait<Event, Stream>);
static_assert(!kCanRecord<void*, Stream> && !kCanRecord<Event, void*>);
static_assert(!kCanWait<void*, Event> && !kCanWait<Stream, void*>);
static_assert(!std::is_convertible_v<void*, Event> && !std::is_convertible_v<void*, Stream>);
static_assert(std::is_trivially_copyable_v<Event> && std::is_trivially_copyable_v<Stream>);

void set_environment(const char* cudart, const char* no_cuda) {
  setenv("VITCACHE_CUDART", cudart, 1);
  setenv("VITCACHE_NO_CUDA", no_cuda, 1);
}

// This test runs first: once the stand-in is loaded, the search finds it as "already loaded".
void open_searches_the_given_directories() {
  set_environment("", "");
  const std::filesystem::path directory =
      std::filesystem::temp_directory_path() / ("vitcache-" + std::to_string(getpid()));
  std::filesystem::create_directory(directory);
  std::filesystem::copy_file(STAND_IN, directory / "libcudart.so.12");
  const CudaRuntime runtime = CudaRuntime::open({"/nonexistent", directory.string()});
  CHECK_EQUAL(runtime.path(), (directory / "libcudart.so.12").string());
  std::filesystem::remove_all(directory);
}

void devices_returns_name_and_capability_of_each_device() {
  set_environment(STAND_IN, "");
  VITCACHE_CONTROL(set_devices)(2);
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(runtime.available());
  CHECK_EQUAL(runtime.path(), std::string(STAND_IN));
  CHECK_EQUAL(runtime.version(), 13000);
  CHECK_EQUAL(runtime.driver_version(), 13000);
  const std::vector<vitcache::CudaDevice> devices = runtime.devices();
  CHECK_EQUAL(devices.size(), std::size_t{2});
  CHECK_EQUAL(devices[1].name, "stand-in 1");
  CHECK_EQUAL(devices[1].major, 9);
  CHECK_EQUAL(devices[1].minor, 1);
}

void a_failed_call_throws_its_name_and_clears_the_last_error() {
  const CudaRuntime runtime = CudaRuntime::open_file(STAND_IN);
  const auto last_error = stand_in::find<int()>("cudaGetLastError");
  VITCACHE_CONTROL(fail)("cudaGetDeviceCount", 1, 35);
  CHECK_THROWS(runtime.devices(), CudaError,
               "cudaGetDeviceCount: cudaErrorInjected (35), error of the stand-in");
  CHECK_EQUAL(last_error(), 0);
  int pageable = 0;
  runtime.free_host(&pageable);
  CHECK_EQUAL(last_error(), 0);
  VITCACHE_CONTROL(limit_locked_bytes)(100);
  CHECK_THROWS(runtime.alloc_host(101), vitcache::OutOfMemory, "cannot page-lock 101 bytes");
  CHECK_EQUAL(last_error(), 0);
  VITCACHE_CONTROL(reset)();
}

void copies_wait_for_a_value_and_for_an_event() {
  const CudaRuntime runtime = CudaRuntime::open_file(STAND_IN);
  const Stream first = runtime.create_stream(0);
  const Stream second = runtime.create_stream(0);
  const Event event = runtime.create_event(0);
  auto* locked = static_cast<std::uint32_t*>(runtime.alloc_host(16));
  locked[0] = 0;
  locked[1] = 7;
  std::uint32_t first_copy = 0, second_copy = 0, third_copy = 0;
  CHECK(runtime.is_done(event));
  runtime.wait_value(first, locked, 3);
  runtime.copy_async(&first_copy, locked + 1, 4, first);
  runtime.record(event, first);
  runtime.wait_event(second, event);
  runtime.copy_batch_async({&second_copy, &third_copy}, {&first_copy, locked + 1}, {4, 4}, second);
  CHECK(!runtime.is_done(event));
  __atomic_store_n(locked, 4U, __ATOMIC_RELEASE);
  runtime.synchronize_stream(second);
  CHECK(runtime.is_done(event));
  CHECK(first_copy == 7 && second_copy == 7 && third_copy == 7);
  CHECK_THROWS(runtime.copy_batch_async({&second_copy}, {&first_copy}, {4}, Stream{nullptr, 0}),
               std::invalid_argument, "cannot be queued on a default stream");
  runtime.destroy_event(event);
  runtime.destroy_stream(first);
  runtime.destroy_stream(second);
  runtime.free_host(locked);
}

void open_file_tries_no_other_file() {
  CHECK_THROWS(CudaRuntime::open_file(NOT_CUDART), CudaError, "has no cuda");
  CHECK_THROWS(CudaRuntime::open_file("/nonexistent"), CudaError, "/nonexistent (given file)");
}

void open_with_a_missing_named_file_tries_no_other_file() {
  set_environment("/nonexistent/libcudart.so", "");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(!runtime.available());
  CHECK_EQUAL(runtime.searched().size(), std::size_t{1});
  CHECK_THROWS(runtime.version(), CudaError, "/nonexistent/libcudart.so");
  CHECK_THROWS(runtime.devices(), CudaError, "no CUDA runtime");
}

void open_refuses_a_library_that_lacks_entry_points() {
  set_environment(NOT_CUDART, "");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(!runtime.available());
  CHECK(runtime.searched().back().find("has no cuda") != std::string::npos);
}

void open_with_no_cuda_set_does_not_search() {
  set_environment(STAND_IN, "1");
  const CudaRuntime runtime = CudaRuntime::open({});
  CHECK(!runtime.available());
  CHECK(runtime.searched().back().find("VITCACHE_NO_CUDA") != std::string::npos);
  set_environment(STAND_IN, "0");
  CHECK(CudaRuntime::open({}).available());
}

}  // namespace

int main() {
  open_searches_the_given_directories();
  devices_returns_name_and_capability_of_each_device();
  a_failed_call_throws_its_name_and_clears_the_last_error();
  copies_wait_for_a_value_and_for_an_event();
  open_file_tries_no_other_file();
  open_with_a_missing_named_file_tries_no_other_file();
  open_refuses_a_library_that_lacks_entry_points();
  open_with_no_cuda_set_does_not_search();
}
