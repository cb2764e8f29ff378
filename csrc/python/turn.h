// A turn: the right of one thread to run a part of the package that calls code of the user, for as long as
// that code runs. Unlike a lock it names its holder, and refuses a call that would wait for itself.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "python/waits.h"

namespace vitcache {

class Turn final : public Resource {
 public:
  explicit Turn(std::string name) : name_(std::move(name)) {}

  // Waits until no thread has the turn, and takes it. Returns the moment of this. Throws as Resource::wait.
  Moment enter(const std::string& call);
  // Does nothing if the turn was not taken at this moment, or has been left.
  void exit(Moment entered);
  // The call of the thread that has the turn.
  std::optional<std::string> current() const;

  std::string use() const override { return "holds " + name_; }
  bool is_turn() const override { return true; }
  void abandon() override { hand_over(); }

 protected:
  void offer() override;

 private:
  void hand_over();

  std::string name_;
};

// One use of a turn, a context manager. If it is destroyed while it has the turn, the turn is left.
class TurnUse {
 public:
  TurnUse(std::shared_ptr<Turn> turn, std::string call) : turn_(std::move(turn)), call_(std::move(call)) {}
  ~TurnUse() { exit(); }
  TurnUse(const TurnUse&) = delete;
  TurnUse& operator=(const TurnUse&) = delete;

  void enter() { entered_ = turn_->enter(call_); }
  void exit();

 private:
  std::shared_ptr<Turn> turn_;
  std::string call_;
  Moment entered_ = 0;
};

}  // namespace vitcache
