#include "python/chunk_reader.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pipeline/window.h"
#include "python/keys.h"

namespace py = pybind11;

namespace vitcache {
namespace {

// Interned names of attributes. They are never released: the interpreter ends before static objects are
// destroyed.
struct Names {
  PyObject* spans = PyUnicode_InternFromString("spans");
  PyObject* num_rows = PyUnicode_InternFromString("num_rows");
  PyObject* row_width = PyUnicode_InternFromString("row_width");
  PyObject* key = PyUnicode_InternFromString("key");
  PyObject* complete_key = PyUnicode_InternFromString("complete_key");
  PyObject* tenant = PyUnicode_InternFromString("tenant");
  PyObject* rows = PyUnicode_InternFromString("rows");
  PyObject* digest = PyUnicode_InternFromString("digest");
  PyObject* items = PyUnicode_InternFromString("items");
  PyObject* arrays = PyUnicode_InternFromString("arrays");
  PyObject* start = PyUnicode_InternFromString("start");
  PyObject* length = PyUnicode_InternFromString("length");
  PyObject* token_offset = PyUnicode_InternFromString("token_offset");
};

const Names& names() {
  static const Names names;
  return names;
}

py::object attribute(py::handle owner, PyObject* name) {
  auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(owner.ptr(), name));
  if (!value) throw py::error_already_set();
  return value;
}

bool has_type(py::handle value, const py::type& type) {
  if (Py_TYPE(value.ptr()) == reinterpret_cast<PyTypeObject*>(type.ptr())) return true;
  const int is_instance = PyObject_IsInstance(value.ptr(), type.ptr());
  if (is_instance < 0) throw py::error_already_set();
  return is_instance == 1;
}

std::string type_name(py::handle value) {
  return py::type::handle_of(value).attr("__name__").cast<std::string>();
}

std::string item_name(py::ssize_t position) { return "item " + std::to_string(position); }

std::int64_t read_int64(py::ssize_t position, py::handle value) {
  if (PyBool_Check(value.ptr()))
    throw py::type_error(item_name(position) + ": a number of tokens or rows must be an int, got " +
                         py::str(value).cast<std::string>());
  const std::int64_t number = PyLong_AsLongLong(value.ptr());
  if (number == -1 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw std::out_of_range(item_name(position) + ": " + py::str(value).cast<std::string>() +
                            " is beyond 64 bits");
  }
  return number;
}

void read_spans(ItemArrays& arrays, py::ssize_t position, py::handle spans) {
  if (PyTuple_Check(spans.ptr()) == 0)
    throw py::type_error(item_name(position) + ": spans must be a tuple, got " + type_name(spans));
  for (py::ssize_t number = 0; number < PyTuple_GET_SIZE(spans.ptr()); ++number) {
    PyObject* span = PyTuple_GET_ITEM(spans.ptr(), number);
    if (PyTuple_Check(span) == 0 || PyTuple_GET_SIZE(span) != 3)
      throw py::type_error(item_name(position) + ": every span must be a Span, got " + type_name(span));
    arrays.add_span(read_int64(position, PyTuple_GET_ITEM(span, 0)),
                    read_int64(position, PyTuple_GET_ITEM(span, 1)),
                    read_int64(position, PyTuple_GET_ITEM(span, 2)), number);
  }
}

std::int64_t read_width(py::ssize_t position, py::handle value) {
  const std::int64_t width = read_int64(position, value);
  if (width < 1)
    throw std::invalid_argument(item_name(position) + ": row_width is " + std::to_string(width) +
                                ", it must be at least 1");
  return width;
}

// `digest` is (namespace, computed key), or (namespace, folded key, given key). A folded key is valid for the
// given key that it was made from.
void read_digest(ItemArrays& arrays, py::ssize_t position, py::handle digest, const py::object& given) {
  const auto fields = digest.cast<py::tuple>();
  if (fields.size() != 2 && fields.size() != 3)
    throw py::type_error(item_name(position) + ": digest must have 2 or 3 fields, got " +
                         std::to_string(fields.size()));
  const bool is_valid = fields.size() == 2 ? given.is_none() : py::object(fields[2]).equal(given);
  if (is_valid) arrays.set_computed(position, fields[0].cast<py::bytes>(), read_key(fields[1]));
}

void read_item(ItemArrays& arrays, py::ssize_t position, py::handle item) {
  ItemFields fields{};
  fields.identity = reinterpret_cast<std::uintptr_t>(item.ptr());
  fields.num_rows = read_int64(position, attribute(item, names().num_rows));
  const py::object row_width = attribute(item, names().row_width);
  if (!row_width.is_none()) fields.row_width = read_width(position, row_width);
  fields.has_rows = !attribute(item, names().rows).is_none();
  const py::object key = attribute(item, names().key);
  if (!key.is_none()) fields.key = read_key(key);
  fields.is_key_complete = attribute(item, names().complete_key).ptr() == Py_True;
  fields.has_tenant = !attribute(item, names().tenant).is_none();
  arrays.add_item(fields);
  read_spans(arrays, position, attribute(item, names().spans));
  const py::object digest = attribute(item, names().digest);
  if (!digest.is_none()) read_digest(arrays, position, digest, key);
}

// A number of a chunk, which `Chunk` has checked; but its attributes may be set afterwards.
std::int64_t read_number(py::handle chunk, PyObject* name) {
  const py::object value = attribute(chunk, name);
  if (PyBool_Check(value.ptr()) || PyIndex_Check(value.ptr()) == 0)
    throw py::type_error(py::str(name).cast<std::string>() + " must be an int, got a " + type_name(value));
  const std::int64_t number = read_bounded(value);
  if (number < 0)
    throw std::invalid_argument(py::str(name).cast<std::string>() + " must be at least 0, got " +
                                py::str(value).cast<std::string>());
  return number;
}

// Refuses a chunk whose end may have more than 64 bits. Chunks before it are refused first.
[[noreturn]] void refuse_misfit(const std::vector<Window>& before, py::handle chunk,
                                std::int64_t num_tokens) {
  check_fit(before, num_tokens);
  const py::object offset = attribute(chunk, names().token_offset);
  const py::object end = offset + attribute(chunk, names().length);
  throw std::out_of_range(describe_misfit(before.size(), py::str(offset), py::str(end), num_tokens));
}

}  // namespace

std::int64_t read_bounded(py::handle value) {
  constexpr std::int64_t kBound = 2 * kLargestToken;
  int overflow = 0;
  const std::int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (overflow != 0) return overflow * kBound;
  if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return std::clamp(number, -kBound, kBound);
}

ItemArrays read_items(const py::tuple& items, const py::type& item_type) {
  for (py::ssize_t position = 0; position < PyTuple_GET_SIZE(items.ptr()); ++position) {
    const py::handle item = PyTuple_GET_ITEM(items.ptr(), position);
    if (!has_type(item, item_type))
      throw py::type_error(item_name(position) + " must be an Item, got " + type_name(item));
  }
  ItemArrays arrays;
  arrays.reserve(items.size());
  for (py::ssize_t position = 0; position < PyTuple_GET_SIZE(items.ptr()); ++position)
    read_item(arrays, position, PyTuple_GET_ITEM(items.ptr(), position));
  arrays.sort_spans();
  return arrays;
}

py::tuple read_requests(const py::object& chunks, const py::type& chunk_type) {
  if (PyList_Check(chunks.ptr()) == 0 && PyTuple_Check(chunks.ptr()) == 0)
    throw py::type_error("chunks must be a list of Chunk, got " + type_name(chunks));
  const py::tuple copied = chunks;  // an attribute could change the list
  py::tuple requests(copied.size());
  for (std::size_t number = 0; number < copied.size(); ++number) {
    const py::handle chunk = PyTuple_GET_ITEM(copied.ptr(), static_cast<py::ssize_t>(number));
    if (!has_type(chunk, chunk_type))
      throw py::type_error("chunk " + std::to_string(number) + " must be a Chunk, got " + type_name(chunk));
  }
  for (std::size_t number = 0; number < copied.size(); ++number)
    requests[number] =
        attribute(PyTuple_GET_ITEM(copied.ptr(), static_cast<py::ssize_t>(number)), names().items);
  return requests;
}

StepPlan plan_chunks(const py::object& chunks, const py::tuple& requests, const py::bytes& key_namespace,
                     std::int64_t num_tokens, std::int64_t row_width, std::int64_t hidden) {
  const py::tuple copied = chunks;
  if (copied.size() != requests.size())
    throw std::invalid_argument("the list of chunks was changed by another thread");
  std::vector<py::object> owners;  // of the arrays, until the plan is built
  std::vector<Window> windows;
  owners.reserve(copied.size());
  windows.reserve(copied.size());
  const bool has_batch = num_tokens != StepPlan::kNoBatch;
  for (std::size_t number = 0; number < copied.size(); ++number) {
    const py::handle chunk = PyTuple_GET_ITEM(copied.ptr(), static_cast<py::ssize_t>(number));
    owners.push_back(
        attribute(PyTuple_GET_ITEM(requests.ptr(), static_cast<py::ssize_t>(number)), names().arrays));
    const Window window{&owners.back().cast<const ItemArrays&>(), read_number(chunk, names().start),
                        read_number(chunk, names().length),
                        has_batch ? read_number(chunk, names().token_offset) : 0};
    if (has_batch && std::max(window.token_offset, window.length) > kLargestToken)
      refuse_misfit(windows, chunk, num_tokens);
    windows.push_back(window);
  }
  return {windows, std::string_view(key_namespace), num_tokens, {row_width, hidden}};
}

bool has_unfolded(const py::tuple& requests, const py::bytes& key_namespace) {
  for (const py::handle request : requests)
    if (attribute(request, names().arrays).cast<const ItemArrays&>().has_unfolded(key_namespace)) return true;
  return false;
}

}  // namespace vitcache
