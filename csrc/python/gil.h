// Waiting without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace vitcache {

// Does `work` without the GIL. Where the interpreter ends meanwhile, a daemon thread ends in taking it back:
// that unwinds its stack, which must not begin in a destructor, so py::gil_scoped_release would end the
// process.
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
