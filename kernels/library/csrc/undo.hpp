// Releasing what was acquired step by step.
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace refusion {

// Undoes in reverse order.
class Undo {
  public:
    Undo() = default;
    ~Undo() { now(); }
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;

    void push(std::function<void()> step) { steps_.push_back(std::move(step)); }
    void now() {
        for (; !steps_.empty(); steps_.pop_back()) steps_.back()();
    }

  private:
    std::vector<std::function<void()>> steps_;
};

}  // namespace refusion
