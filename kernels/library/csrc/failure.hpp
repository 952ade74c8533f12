// Failures with a code of refusion_edge.h.
#pragma once

#include <stdexcept>
#include <string>

#include "refusion_edge.h"

namespace refusion {

struct Failure : std::runtime_error {
    Failure(int code_of_it, const std::string& sentence) : std::runtime_error(sentence), code(code_of_it) {}
    int code;
};

inline void require(bool holds, const char* problem) {
    if (!holds) throw Failure(REFUSION_EDGE_INVALID, problem);
}

}  // namespace refusion
