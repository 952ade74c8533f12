#include "weights_file.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>

#include "json.hpp"
#include "parameters.hpp"
#include "whole_file.hpp"

namespace refusion {
namespace {

// A file of these networks has 0.1 to 2.5 MB.
constexpr std::size_t kMostBytes = std::size_t{64} << 20;

struct Entry {
    std::string dtype;
    std::vector<std::uint64_t> shape, offsets;
};

using Entries = std::map<std::string, Entry>;

std::vector<std::uint64_t> numbers(const Json& value) {
    if (value.kind != Json::Kind::list) throw Malformed("its header has no list of numbers where one is expected");
    std::vector<std::uint64_t> found;
    for (const Json& item : value.items) {
        if (item.kind != Json::Kind::integer) throw Malformed("its header has no number where one is expected");
        if (item.integer < 0 || item.integer > static_cast<std::int64_t>(kMostBytes)) throw Malformed("its header has a number out of range");
        found.push_back(static_cast<std::uint64_t>(item.integer));
    }
    return found;
}

Entries read_header(const std::string& text) {
    Json header;
    try {
        header = parse_json(text);
    } catch (const Malformed& error) {
        throw Malformed(std::string("its header ") + error.what());
    }
    if (header.kind != Json::Kind::object) throw Malformed("its header is no object");
    Entries entries;
    for (std::size_t i = 0; i < header.keys.size(); ++i) {
        const std::string& name = header.keys[i];
        const Json& fields = header.items[i];
        if (name == "__metadata__") continue;
        if (fields.kind != Json::Kind::object) throw Malformed("its header has no parameter where one is expected");
        Entry entry;
        for (std::size_t j = 0; j < fields.keys.size(); ++j) {
            const std::string& field = fields.keys[j];
            const Json& value = fields.items[j];
            if (field == "dtype") {
                entry.dtype = value.text;
            } else if (field == "shape") {
                entry.shape = numbers(value);
            } else if (field == "data_offsets") {
                entry.offsets = numbers(value);
            } else {
                throw Malformed("its header has the unknown field " + field);
            }
        }
        entries[name] = entry;
    }
    return entries;
}

// The layout of the network `fast` that these entries begin to describe; absent if they are of the paper's network.
std::optional<FastLayout> find_fast(const Entries& entries) {
    const auto first = entries.find("layers.0.weight");
    if (first == entries.end()) return std::nullopt;
    const std::vector<std::uint64_t>& shape = first->second.shape;
    constexpr std::uint64_t most = kFastMostChannels;
    if (shape.size() != 4 || shape[0] > most || shape[1] > most) throw Malformed("the parameter layers.0.weight has another shape");
    FastLayout layout{static_cast<int>(shape[0]), 0, 2};
    while (entries.count("layers." + std::to_string(layout.convolutions) + ".weight") != 0) ++layout.convolutions;
    while (layout.planes() < static_cast<int>(shape[1])) ++layout.factor;
    try {
        require_layout(layout);
    } catch (const std::invalid_argument&) {
        throw Malformed("the network fast cannot have these sizes");
    }
    return layout;
}

Weights parse(const std::string& data) {
    std::uint64_t length = 0;
    if (data.size() < 8) throw Malformed("it has only " + std::to_string(data.size()) + " bytes");
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(data[static_cast<std::size_t>(i)]);
    if (length > data.size() - 8) throw Malformed("it is cut short or no safetensors file");
    const Entries entries = read_header(data.substr(8, length));
    const std::size_t start = 8 + length, available = data.size() - start;
    Weights weights{find_fast(entries), {}};
    const std::vector<Parameter> rows = weights.fast ? fast_parameters(*weights.fast) : parameters();
    std::vector<float>& flat = weights.flat;
    flat.resize(rows.back().offset + rows.back().size);
    for (const Parameter& row : rows) {
        const auto found = entries.find(row.name);
        if (found == entries.end()) throw Malformed("the parameter " + row.name + " is missing");
        const Entry& entry = found->second;
        const std::vector<std::uint64_t> shape(row.shape.begin(), row.shape.end());
        const bool fits = entry.dtype == "F32" && entry.shape == shape && entry.offsets.size() == 2 &&
                          entry.offsets[0] <= entry.offsets[1] && entry.offsets[1] <= available &&
                          entry.offsets[1] - entry.offsets[0] == row.size * sizeof(float);
        if (!fits) throw Malformed("the parameter " + row.name + " has another type or shape");
        // Little-endian, as every processor that this is built for.
        std::memcpy(flat.data() + row.offset, data.data() + start + entry.offsets[0], row.size * sizeof(float));
        for (std::size_t i = 0; i < row.size; ++i) {
            if (!std::isfinite(flat[row.offset + i])) throw Malformed("the parameter " + row.name + " contains NaN or infinity");
        }
    }
    if (entries.size() != rows.size()) {
        throw Malformed("it holds " + std::to_string(entries.size()) + " parameters instead of " + std::to_string(rows.size()));
    }
    return weights;
}

}  // namespace

Weights parse_weights(const std::string& data, const std::string& name) {
    try {
        if (data.size() > kMostBytes) throw Malformed("it has " + std::to_string(data.size()) + " bytes");
        return parse(data);
    } catch (const Malformed& error) {
        throw DamagedWeights("cannot read the weights in " + name + ": " + error.what() + "; give the weights.safetensors of a bundle");
    }
}

Weights read_weights(const std::string& path) {
    const std::optional<std::string> data = read_whole_file(path, kMostBytes);
    if (!data) throw UnreadableWeights("cannot read the weights in " + path + ": it cannot be read; give the weights.safetensors of a bundle");
    return parse_weights(*data, path);
}

}  // namespace refusion
