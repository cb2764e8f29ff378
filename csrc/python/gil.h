// Runs code without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace vitcache {

// Runs `work` without the GIL. If the interpreter ends in the meantime, a daemon thread that takes the GIL
// back is ended by stack unwinding. Unwinding that begins in a destructor terminates the process, so
// py::gil_scoped_release, which takes the GIL back in its destructor, cannot be used here.
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
