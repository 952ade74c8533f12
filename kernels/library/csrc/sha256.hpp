// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace refusion {

// The hash in hexadecimal digits.
std::string sha256(const char* data, std::size_t size);

}  // namespace refusion
