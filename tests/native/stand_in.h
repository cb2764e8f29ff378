// Opens the stand-in for the CUDA runtime, and finds its controls by name.
#pragma once

#include <dlfcn.h>

#include <memory>

#include "check.h"
#include "runtime/cuda_runtime.h"
#include "stand_in/faults.h"

namespace stand_in {

template <typename Function>
Function* find(const char* name) {
  static void* const library = dlopen(STAND_IN, RTLD_NOW);
  void* symbol = library == nullptr ? nullptr : dlsym(library, name);
  CHECK(symbol != nullptr);
  return reinterpret_cast<Function*>(symbol);
}

#define VITCACHE_CONTROL(name) stand_in::find<decltype(vitcache_stand_in_##name)>("vitcache_stand_in_" #name)

inline vitcache::SharedRuntime open() {
  return std::make_shared<const vitcache::CudaRuntime>(vitcache::CudaRuntime::open_file(STAND_IN));
}

inline vitcache_stand_in_counts count() { return VITCACHE_CONTROL(count)(); }

// While a Pause exists, streams execute no work.
class Pause {
 public:
  Pause() { VITCACHE_CONTROL(pause)(1); }
  ~Pause() { VITCACHE_CONTROL(pause)(0); }
};

}  // namespace stand_in
