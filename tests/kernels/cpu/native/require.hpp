// What must hold, or the driver stops and says what does not.
#pragma once

#include <stdexcept>
#include <string>

inline void require(bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error(what);
}
