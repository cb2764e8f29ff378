// Runs code without the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>

#include "ring/interrupts.h"

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

// Runs `work(interrupts)` without the GIL. In the main thread, in which Python runs the handlers of signals,
// the interrupts run them. The exception of a handler ends `work` and is raised. In other threads the
// interrupts do nothing: they never acquire the GIL, so the end of the interpreter cannot unwind `work`.
template <typename Work>
void without_gil_interruptibly(Work work) {
  struct Interrupted {};  // the exception of the handler is set in the thread's state
  if (syscall(SYS_gettid) != getpid()) return without_gil([&work] { work(Interrupts()); });
  bool is_interrupted = false;
  std::exception_ptr error;
  PyThreadState* thread = PyEval_SaveThread();
  try {
    work(Interrupts([&thread] {
      PyEval_RestoreThread(thread);
      const bool has_raised = PyErr_CheckSignals() != 0;
      thread = PyEval_SaveThread();
      if (has_raised) throw Interrupted{};
    }));
  } catch (const Interrupted&) {
    is_interrupted = true;
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(thread);
  if (is_interrupted) throw pybind11::error_already_set();
  if (error) std::rethrow_exception(error);
}

}  // namespace vitcache
