// Runs code without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace vitcache {

// Runs `work` without the GIL. If the interpreter ends during `work`, Python 3.13 and older end a daemon
// thread by stack unwinding when it acquires the GIL. Unwinding that begins in a destructor terminates the
// process. So py::gil_scoped_release, whose destructor acquires the GIL, cannot be used here.
template <typename Work>
void without_gil(Work work) {
  std::exception_ptr error;
  PyThreadState* const thread = PyEval_SaveThread();
  try {
    work();
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(thread);
  if (error) std::rethrow_exception(error);
}

}  // namespace vitcache
