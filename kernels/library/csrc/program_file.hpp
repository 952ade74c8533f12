// Reading .rfx program files, see docs/program_file.md.
#pragma once

#include <string>

#include "program.hpp"

namespace refusion {

// Reads a program and checks everything in it, as refusion_edge/cuda/program_file.py does, before a device sees it. `name`:
// what to call it in messages. Throws Failure with REFUSION_EDGE_DAMAGED.
Program parse_program(const std::string& data, const std::string& name);

}  // namespace refusion
