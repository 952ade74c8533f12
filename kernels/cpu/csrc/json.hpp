// Reading the JSON of files that may come from anywhere.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace refusion {

struct Malformed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A value. `keys` are those of an object, one for each of `items`.
struct Json {
    enum class Kind { null, boolean, integer, real, text, list, object };

    Kind kind = Kind::null;
    bool boolean = false;
    std::int64_t integer = 0;
    double real = 0;
    std::string text;
    std::vector<std::string> keys;
    std::vector<Json> items;

    // The value of a key, or null if there is none.
    const Json* find(const std::string& key) const;
};

// Throws Malformed, with half a sentence about the text, for anything that is not one JSON value: also for a key that comes
// twice, a whole number of more than 63 bits, objects or lists within one another more than 32 deep, and more than a million
// values.
Json parse_json(const std::string& text);

}  // namespace refusion
