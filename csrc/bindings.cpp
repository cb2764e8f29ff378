// The module vitcache._native: the only file that sees Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <string>

#include "cuda_runtime.h"
#include "error.h"
#include "placement.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// vitcache.CudaError is a Python class, so that it exists where this module was not built.
void translate_cuda_error(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const CudaError& cuda_error) {
    py::set_error(py::module_::import("vitcache.errors").attr("CudaError"), cuda_error.what());
  }
}

void bind_cuda_runtime(py::module_& module) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  py::class_<CudaDevice>(module, "CudaDevice")
      .def_readonly("name", &CudaDevice::name)
      .def_readonly("major", &CudaDevice::major)
      .def_readonly("minor", &CudaDevice::minor);
  py::class_<CudaRuntime>(module, "CudaRuntime")
      .def(py::init(&CudaRuntime::open), py::arg("directories"), without_gil)
      .def_property_readonly("available", &CudaRuntime::available)
      .def_property_readonly("path", &CudaRuntime::path)
      .def_property_readonly("searched", &CudaRuntime::searched)
      .def("version", &CudaRuntime::version, without_gil)
      .def("driver_version", &CudaRuntime::driver_version, without_gil)
      .def("devices", &CudaRuntime::devices, without_gil);
}

// Rows of (start, length, source_start) of one source, or of (item, start, length, source_start).
void add_runs(Placement& placement, const py::array_t<std::int64_t, py::array::c_style>& table) {
  if (table.ndim() != 2 || (table.shape(1) != 3 && table.shape(1) != 4))
    throw std::invalid_argument("runs must be an array (n, 3) or (n, 4)");
  const py::ssize_t columns = table.shape(1);
  const std::int64_t* row = table.data();
  for (py::ssize_t i = 0; i < table.shape(0); ++i, row += columns) {
    const std::int64_t* span = row + columns - 3;
    placement.add_run({columns == 4 ? row[0] : 0, span[0], span[1], span[2]});
  }
}

// Tables are written through an address: torch owns their memory, and this module does not know torch.
std::int64_t* table_at(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }

void bind_placement(py::module_& module) {
  py::class_<Placement>(module, "Placement")
      .def(py::init<>())
      .def("add_source", &Placement::add_source, py::arg("address"), py::arg("row_stride"),
           py::arg("num_rows"), py::arg("kind"))
      .def("add_paged_source", &Placement::add_paged_source, py::arg("address"), py::arg("row_stride"),
           py::arg("num_rows"), py::arg("kind"), py::arg("pages"), py::arg("page_rows"))
      .def("add_run",
           [](Placement& placement, std::int64_t item, std::int64_t start, std::int64_t length,
              std::int64_t source_start) { placement.add_run({item, start, length, source_start}); })
      .def("add_runs", &add_runs)
      .def("check", &Placement::check, py::arg("num_tokens"))
      .def("runs",
           [](const Placement& placement) {
             py::list runs;
             for (const Run& run : placement.runs())
               runs.append(py::make_tuple(run.item, run.start, run.length, run.source_start));
             return runs;
           })
      .def("num_rows", &Placement::num_rows, py::arg("kind"))
      .def("aligned", &Placement::aligned, py::arg("kind"))
      .def("write_row_table", [](const Placement& placement, int kind,
                                 std::uintptr_t table) { placement.write_row_table(kind, table_at(table)); })
      .def("write_token_table",
           [](const Placement& placement, int kind, std::uintptr_t table, std::int64_t num_tokens) {
             placement.write_token_table(kind, table_at(table), num_tokens);
           });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("version") = VITCACHE_VERSION;
  module.attr("compiler") = VITCACHE_COMPILER;
  module.attr("flags") = VITCACHE_FLAGS;
  py::register_local_exception_translator(translate_cuda_error);
  bind_cuda_runtime(module);
  bind_placement(module);
}

}  // namespace vitcache
