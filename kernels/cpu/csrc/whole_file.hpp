// Reading a file at once.
#pragma once

#include <fstream>
#include <optional>
#include <string>

namespace refusion {

// The bytes of a file; absent if it cannot be read or has more than `most`.
inline std::optional<std::string> read_whole_file(const std::string& path, std::size_t most) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (size < 0 || size > static_cast<std::streamoff>(most)) return std::nullopt;
    std::string data(static_cast<std::size_t>(size), '\0');
    file.seekg(0);
    if (!file.read(data.data(), size)) return std::nullopt;
    return data;
}

}  // namespace refusion
