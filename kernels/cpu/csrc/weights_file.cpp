#include "weights_file.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>

#include "parameters.hpp"

namespace refusion {
namespace {

// A file of these networks has 0.1 to 2.5 MB.
constexpr std::size_t kMostBytes = std::size_t{64} << 20;

struct Entry {
    std::string dtype;
    std::vector<std::uint64_t> shape, offsets;
};

struct Malformed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The JSON that a safetensors header may hold: objects of objects of texts and lists of whole numbers. Texts are taken as
// they are between their quotes; names with escapes are none of ours.
class Header {
  public:
    explicit Header(const std::string& text) : text_(text) {}

    std::map<std::string, Entry> read() {
        std::map<std::string, Entry> entries;
        members([&](const std::string& name) {
            if (name == "__metadata__") {
                members([&](const std::string&) { text(); });
                return;
            }
            Entry entry;
            members([&](const std::string& field) {
                if (field == "dtype") {
                    entry.dtype = text();
                } else if (field == "shape") {
                    entry.shape = numbers();
                } else if (field == "data_offsets") {
                    entry.offsets = numbers();
                } else {
                    throw Malformed("its header has the unknown field " + field);
                }
            });
            entries[name] = entry;
        });
        skip_space();
        if (at_ != text_.size()) throw Malformed("its header does not end where it should");
        return entries;
    }

  private:
    template <class Member>
    void members(const Member& member) {
        expect('{');
        if (take('}')) return;
        do {
            const std::string name = text();
            expect(':');
            member(name);
        } while (take(','));
        expect('}');
    }

    std::string text() {
        expect('"');
        std::string value;
        for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (text_[at_] == '\\' && ++at_ == text_.size()) break;
            value += text_[at_];
        }
        if (at_ == text_.size()) throw Malformed("its header breaks off");
        ++at_;
        return value;
    }

    std::vector<std::uint64_t> numbers() {
        std::vector<std::uint64_t> values;
        expect('[');
        if (take(']')) return values;
        do {
            skip_space();
            std::uint64_t value = 0;
            const std::size_t start = at_;
            for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
                value = value * 10 + static_cast<std::uint64_t>(text_[at_] - '0');
                if (value > kMostBytes) throw Malformed("its header has a number out of range");
            }
            if (at_ == start) throw Malformed("its header has something else where a number should be");
            values.push_back(value);
        } while (take(','));
        expect(']');
        return values;
    }

    void skip_space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
    }

    bool take(char wanted) {
        skip_space();
        if (at_ == text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) throw Malformed(std::string("its header has no '") + wanted + "' where one should be");
    }

    const std::string& text_;
    std::size_t at_ = 0;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (size < 0 || size > static_cast<std::streamoff>(kMostBytes)) throw Malformed("it cannot be read");
    std::string data(static_cast<std::size_t>(size), '\0');
    file.seekg(0);
    if (!file.read(data.data(), size)) throw Malformed("it cannot be read");
    return data;
}

using Entries = std::map<std::string, Entry>;

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
    const std::string header = data.substr(8, length);
    const Entries entries = Header(header).read();
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

Weights read_weights(const std::string& path) {
    try {
        return parse(read_file(path));
    } catch (const Malformed& error) {
        throw std::runtime_error("cannot read the weights in " + path + ": " + error.what() + "; give the weights.safetensors of a bundle");
    }
}

}  // namespace refusion
