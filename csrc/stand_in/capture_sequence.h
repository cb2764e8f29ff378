// One capture sequence: its mode, and how far each of its streams has come.
//
// Thread rule: the caller locks a mutex.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <thread>

namespace vitcache::stand_in {

using Serial = std::uint64_t;  // of a stream or event

class Capture {
 public:
  Capture(Serial stream, int capture_mode) : origin(stream), mode(capture_mode) {}

  const Serial origin;  // the stream where the capture began
  const int mode;
  bool is_invalidated = false;

  bool is_of_this_thread() const { return thread_ == std::this_thread::get_id(); }
  std::uint64_t num_calls() const { return num_calls_; }

  // The number of captured calls and waits of `stream`. An event stores it when it is recorded.
  std::uint64_t position(Serial stream) const {
    const auto found = positions_.find(stream);
    return found == positions_.end() ? 0 : found->second;
  }

  // Whether the origin has waited, directly or through other streams, for the last work of every stream.
  bool is_joined() const { return unjoined_.empty(); }

  void add_call(Serial stream) {
    ++num_calls_;
    advance(stream);
  }

  // `stream` waits for an event that was recorded at `recorded_position` of stream `recorded`.
  void wait(Serial stream, Serial recorded, std::uint64_t recorded_position) {
    if (position(recorded) == recorded_position) unjoined_.erase(recorded);
    advance(stream);
  }

 private:
  void advance(Serial stream) {
    ++positions_[stream];
    if (stream != origin) unjoined_.insert(stream);
  }

  const std::thread::id thread_ = std::this_thread::get_id();
  std::uint64_t num_calls_ = 0;
  std::map<Serial, std::uint64_t> positions_;
  std::set<Serial> unjoined_;
};

}  // namespace vitcache::stand_in
