// Compares fills with loops over single elements, and casts with arithmetic in doubles.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "ring/cast.h"
#include "ring/fill.h"

namespace {

using vitcache::Cast;
using vitcache::fill;
using vitcache::StridedView;
using Sizes = std::vector<std::int64_t>;

constexpr std::byte kGuard{0xA5};

std::vector<std::byte> patterned_bytes(std::size_t bytes) {
  std::vector<std::byte> memory(bytes);
  for (std::size_t i = 0; i < bytes; ++i) memory[i] = static_cast<std::byte>(i * 2654435761U >> 24);
  return memory;
}

// The address of element `index` in row-major order.
const std::byte* element(const std::byte* data, const Sizes& shape, const Sizes& strides,
                         std::int64_t index) {
  for (std::size_t i = shape.size(); i-- > 0; index /= shape[i]) data += index % shape[i] * strides[i];
  return data;
}

// Fills from elements [first, first + count), `offset` bytes into guard bytes, and checks elements and
// guards.
void check_range(const std::byte* data, std::int64_t bytes, const Sizes& shape, const Sizes& strides,
                 std::int64_t first, std::int64_t count, std::size_t offset) {
  const auto length = static_cast<std::size_t>(count * bytes);
  std::vector<std::byte> written(offset + length + 64, kGuard);
  fill(written.data() + offset, StridedView(data, bytes, shape, strides), first, count, Cast::kNone);
  for (std::int64_t i = 0; i < count; ++i)
    CHECK(std::memcmp(written.data() + offset + i * bytes, element(data, shape, strides, first + i),
                      static_cast<std::size_t>(bytes)) == 0);
  for (std::size_t i = 0; i < written.size(); ++i)
    CHECK((i >= offset && i < offset + length) || written[i] == kGuard);
}

void fill_of_any_part_of_any_view_writes_only_its_elements() {
  const std::vector<std::byte> memory = patterned_bytes(1 << 16);
  const std::byte* middle = memory.data() + (1 << 15) + 1;  // an odd address, with bytes on both sides
  const std::vector<std::pair<Sizes, Sizes>> views{
      {{}, {}},
      {{0, 3}, {8, 1}},
      {{37}, {4}},
      {{5, 7}, {28, 4}},         // one block
      {{5, 7}, {40, 4}},         // rows of a wider array
      {{5, 7}, {-28, -4}},       // flipped
      {{3, 5, 4}, {4, 48, 12}},  // (H, W, C) as (C, H, W)
      {{4, 1, 6}, {0, 99, 4}},   // one row, repeated
      {{2, 2, 2, 2, 2}, {4, 64, 8, 32, 16}},
  };
  for (const auto& [shape, strides] : views)
    for (const std::int64_t bytes : {1, 2, 3, 4, 8, 16}) {
      const std::int64_t total = StridedView(middle, bytes, shape, strides).num_elements();
      for (std::int64_t first = 0; first <= total; first += 1 + first / 3)
        for (std::int64_t count = 0; count <= total - first; count += 1 + count / 2)
          check_range(middle, bytes, shape, strides, first, count,
                      static_cast<std::size_t>(first + count) % 17);
    }
}

void fill_of_any_length_and_alignment_writes_only_its_bytes() {
  const std::vector<std::byte> memory = patterned_bytes(4096);
  for (std::size_t offset = 0; offset < 33; ++offset)
    for (std::int64_t length = 0; length < 200; ++length)
      check_range(memory.data() + offset % 5, 1, {length}, {1}, 0, length, offset);
}

// The nearest number with `mantissa_bits` bits, computed in doubles.
double nearest(double value, int mantissa_bits, int least_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, mantissa_bits - exponent)), exponent - mantissa_bits);
}

double from_float16(std::uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

void casts_around_every_16_bit_number_round_to_nearest_even() {
  std::vector<std::uint32_t> patterns;
  for (std::uint32_t high = 0; high < 0x10000; ++high)
    for (const std::uint32_t low :
         {0U, 1U, 0x0FFFU, 0x1000U, 0x1001U, 0x2FFFU, 0x3000U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU})
      patterns.push_back(high << 16 | low);
  const auto count = static_cast<std::int64_t>(patterns.size());
  std::vector<std::uint16_t> half(patterns.size()), brain(patterns.size());
  vitcache::cast_to_float16(half.data(), patterns.data(), count);
  vitcache::cast_to_bfloat16(brain.data(), patterns.data(), count);
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    float value;
    std::memcpy(&value, &patterns[i], sizeof value);
    if (std::isnan(value)) {
      CHECK_EQUAL(brain[i], 0x7FC0);
      CHECK_EQUAL(half[i], (patterns[i] >> 16 & 0x8000U) | 0x7E00U | (patterns[i] >> 13 & 0x3FFU));
      continue;
    }
    const double wide = nearest(value, 10, -14);
    CHECK_EQUAL(from_float16(half[i]),
                std::abs(wide) > 65504 ? std::copysign(std::numeric_limits<double>::infinity(), wide) : wide);
    CHECK_EQUAL(half[i] >> 15 != 0, patterns[i] >> 31 != 0);
    const std::uint32_t back = static_cast<std::uint32_t>(brain[i]) << 16;
    float narrow;
    std::memcpy(&narrow, &back, sizeof narrow);
    const double rounded = nearest(value, 7, -126);
    CHECK_EQUAL(static_cast<double>(narrow),
                std::abs(rounded) > 3.39e38 ? std::copysign(std::numeric_limits<double>::infinity(), rounded)
                                            : rounded);
    CHECK_EQUAL(brain[i] >> 15 != 0, patterns[i] >> 31 != 0);
  }
}

void fill_with_a_cast_keeps_the_order_of_any_view() {
  std::vector<float> values(3 * 5000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) * 0.37F;
  const auto* data = reinterpret_cast<const std::byte*>(values.data());
  for (const auto& [shape, strides] : std::vector<std::pair<Sizes, Sizes>>{
           {{15000}, {4}}, {{5000}, {12}}, {{3, 5000}, {4, 12}}, {{100, 7}, {60, 4}}}) {
    const StridedView view(data, 4, shape, strides);
    for (const Cast cast : {Cast::kFloat32ToBfloat16, Cast::kFloat32ToFloat16}) {
      const std::int64_t first = 3, count = view.num_elements() - 5;
      std::vector<std::uint16_t> written(static_cast<std::size_t>(count) + 2, 0xA5A5);
      fill(reinterpret_cast<std::byte*>(written.data() + 1), view, first, count, cast);
      for (std::int64_t i = 0; i < count; ++i) {
        std::uint16_t expected;
        const std::byte* from = element(data, shape, strides, first + i);
        if (cast == Cast::kFloat32ToFloat16)
          vitcache::cast_to_float16(&expected, from, 1);
        else
          vitcache::cast_to_bfloat16(&expected, from, 1);
        CHECK_EQUAL(written[static_cast<std::size_t>(i) + 1], expected);
      }
      CHECK(written.front() == 0xA5A5 && written.back() == 0xA5A5);
    }
  }
}

void invalid_shapes_and_casts_throw_their_numbers() {
  const std::byte data{};
  CHECK_THROWS(StridedView(&data, 1, {2, 3}, {1}), std::invalid_argument, "got 2 sizes and 1 strides");
  CHECK_THROWS(StridedView(&data, 1, {2, -3}, {1, 1}), std::invalid_argument, "size 1 is -3");
  constexpr std::int64_t huge = std::int64_t{1} << 32;
  CHECK_THROWS(StridedView(&data, 1, {huge, huge}, {0, 0}), std::invalid_argument, "has more than 64 bits");
  CHECK_THROWS(StridedView(&data, 1, {2, huge}, {1, huge}), std::invalid_argument,
               "outside of the address space");
  CHECK_EQUAL(StridedView(&data, 1, {huge, 0, huge}, {huge, huge, huge}).num_elements(), 0);
  CHECK_THROWS(vitcache::cast_bytes(Cast::kFloat32ToFloat16, 8), std::invalid_argument,
               "elements of 8 bytes");
}

// Threads fill parts of one slot. A thread that has read all their flags sees all their bytes.
void parts_filled_by_threads_are_visible_after_their_flag() {
  const std::vector<std::byte> memory = patterned_bytes(1 << 20);
  const StridedView view(memory.data(), 1, {1 << 20}, {1});
  std::vector<std::byte> slot(1 << 20);
  std::atomic<int> full{0};
  std::vector<std::thread> threads;
  constexpr std::int64_t kPart = (1 << 20) / 4;
  for (std::int64_t part = 0; part < 4; ++part)
    threads.emplace_back([&, part] {
      fill(slot.data() + part * kPart, view, part * kPart, kPart, Cast::kNone);
      full.fetch_add(1, std::memory_order_release);
    });
  while (full.load(std::memory_order_acquire) < 4) std::this_thread::yield();
  CHECK(slot == memory);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  fill_of_any_part_of_any_view_writes_only_its_elements();
  fill_of_any_length_and_alignment_writes_only_its_bytes();
  casts_around_every_16_bit_number_round_to_nearest_even();
  fill_with_a_cast_keeps_the_order_of_any_view();
  invalid_shapes_and_casts_throw_their_numbers();
  parts_filled_by_threads_are_visible_after_their_flag();
}
