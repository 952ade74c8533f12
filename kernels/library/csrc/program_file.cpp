#include "program_file.hpp"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "failure.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace refusion {
namespace {

constexpr char kMagic[] = "\x89RFX\r\n\x1a\n";
constexpr char kSchema[] = "refusion-edge/program/2";
constexpr std::size_t kHeaderBytes = 64;

constexpr std::int64_t kMostBytes = std::int64_t{64} << 20, kMostManifestBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMostBlobBytes = std::int64_t{128} << 20, kLongestBlob = std::int64_t{1} << 25;
constexpr std::int64_t kMostElements = std::int64_t{1} << 20;
constexpr std::int64_t kMostSharedBytes = 232448;  // what one block may have on sm_90, the most of any architecture
constexpr std::int64_t kMostStreams = 2, kMostConstants = 256, kMostDimensions = 8;

const std::vector<std::string> kDtypes = {"float16", "float32", "float64", "uint8"};
const std::vector<std::string> kTypes = {"int32", "float16*", "float32*", "float64*", "uint8*"};

template <class Items>
bool holds(const Items& items, const std::string& item) {
    return std::find(items.begin(), items.end(), item) != items.end();
}

std::uint64_t little_endian(const std::string& data, std::size_t at, int bytes) {
    std::uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(data[at + static_cast<std::size_t>(i)]);
    return value;
}

std::vector<float> floats(const std::string& bytes) {
    std::vector<float> numbers(bytes.size() / sizeof(float));
    std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(float));  // little-endian, as every processor this is built for
    return numbers;
}

// Whether all numbers of little-endian floats are finite.
bool all_finite(const std::string& bytes, const std::string& dtype) {
    const std::size_t size = bytes_of(dtype);
    if (dtype == "uint8") return true;
    const int bits = dtype == "float16" ? 5 : dtype == "float32" ? 8 : 11, fraction = static_cast<int>(size) * 8 - 1 - bits;
    const std::uint64_t exponent = (std::uint64_t{1} << bits) - 1;
    for (std::size_t i = 0; i + size <= bytes.size(); i += size) {
        if ((little_endian(bytes, i, static_cast<int>(size)) >> fraction & exponent) == exponent) return false;
    }
    return true;
}

// Turns JSON into a program and refuses whatever does not fit.
class Reader {
  public:
    explicit Reader(const std::string& name) : name_(name) {}

    Program program(const std::string& data) {
        const Json manifest = read_manifest(data);
        require(text(manifest, "schema") == kSchema, std::string("the schema ") + kSchema);
        Program program;
        const Json& model = get(manifest, "model", Json::Kind::object);
        for (const Json& item : model.items) require(item.kind == Json::Kind::text, "texts in the field model");
        if (const Json* network = model.find("network")) program.network = network->text;
        read_weights(get(manifest, "weights", Json::Kind::object), program);
        for (const Json& fields : list(manifest, "kernels", 256)) program.kernels.push_back(kernel(fields));
        require_unique(program.kernels, "kernels");
        for (const Json& fields : list(manifest, "buffers", 1024)) program.buffers.push_back(buffer(fields, program));
        require_unique(program.buffers, "buffers");
        for (const Json& fields : list(manifest, "launches", 2048)) program.launches.push_back(launch(fields, program));
        check_launches(program);
        std::set<int> architectures;
        for (const Json& fields : list(manifest, "targets", 64)) {
            program.targets.push_back(target(fields, program));
            require(architectures.insert(program.targets.back().architecture).second, "targets with different names");
        }
        program.test = test(get(manifest, "self_test", Json::Kind::object));
        check_visible(program);
        return program;
    }

  private:
    Json read_manifest(const std::string& data) {
        require(data.size() >= kHeaderBytes && std::memcmp(data.data(), kMagic, 8) == 0, "a program file (.rfx)");
        const std::uint64_t length = little_endian(data, 16, 8), size = little_endian(data, 24, 8);
        require(little_endian(data, 8, 4) == 1, "version 1 of the header");
        require(size == data.size(), "a file of " + std::to_string(size) + " bytes");
        require(size <= kMostBytes && length <= kMostManifestBytes, "a file of less than 64 MiB");
        const std::size_t end = kHeaderBytes + length;
        require(little_endian(data, 12, 4) == 0 && end <= size, "a valid header");
        std::string digest;
        for (std::size_t i = 32; i < 64; ++i) {
            for (const int shift : {4, 0}) digest += "0123456789abcdef"[static_cast<unsigned char>(data[i]) >> shift & 15];
        }
        require(sha256(data.data() + kHeaderBytes, length) == digest, "the original manifest");
        Json manifest;
        try {
            manifest = parse_json(data.substr(kHeaderBytes, length));
        } catch (const Malformed&) {
            refuse("JSON in the manifest");
        }
        require(manifest.kind == Json::Kind::object, "an object in the manifest");
        split(data, end, list(manifest, "blobs", 2048));
        return manifest;
    }

    void split(const std::string& data, std::size_t end, const std::vector<Json>& entries) {
        std::int64_t total = 0;
        for (const Json& entry : entries) total += number(entry, "length", 1, kLongestBlob);
        require(total <= kMostBlobBytes, "blobs of at most 128 MiB in all");
        const auto only_zeros = [&](std::size_t from, std::size_t to) {
            return std::all_of(data.begin() + static_cast<std::ptrdiff_t>(from), data.begin() + static_cast<std::ptrdiff_t>(to),
                               [](char byte) { return byte == 0; });
        };
        for (const Json& entry : entries) {
            const std::string what = "blob " + std::to_string(blobs_.size());
            const std::size_t start = aligned(end), size = static_cast<std::size_t>(number(entry, "size", 1, kMostBytes));
            require(start <= data.size() && size <= data.size() - start, what + " within the file");
            require(only_zeros(end, start), "zeros between the blobs");
            require(sha256(data.data() + start, size) == text(entry, "sha256"), "the SHA-256 of " + what);
            blobs_.push_back(decoded(entry, data.data() + start, size, what));
            end = start + size;
        }
        require(aligned(end) == data.size() && only_zeros(end, data.size()), "the end of the file");
    }

    std::string decoded(const Json& entry, const char* stored, std::size_t size, const std::string& what) {
        const auto length = static_cast<std::size_t>(number(entry, "length", 1, kLongestBlob));
        const std::string encoding = choice(entry, "encoding", {"none", "zlib"});
        std::string data;
        if (encoding == "none") {
            data.assign(stored, size);
        } else {
            data.resize(length);
            uLongf written = static_cast<uLongf>(length);
            uLong read = static_cast<uLong>(size);
            const int code = uncompress2(reinterpret_cast<Bytef*>(data.data()), &written, reinterpret_cast<const Bytef*>(stored), &read);
            if (code == Z_MEM_ERROR) throw std::bad_alloc();
            require(code == Z_OK && read == size, "zlib data in " + what);
            data.resize(written);
        }
        require(data.size() == length, std::to_string(length) + " bytes of " + what);
        return data;
    }

    ProgramKernel kernel(const Json& fields) {
        ProgramKernel made{text(fields, "name"), {}, false, 0};
        for (const Json& entry : list(fields, "parameters", 64)) {
            made.parameters.push_back(
                {text(entry, "name"), choice(entry, "type", kTypes), get(entry, "written", Json::Kind::boolean).boolean});
        }
        require_unique(made.parameters, "parameters");
        const Json& constants = get(fields, "constants", Json::Kind::object);
        const bool sound = constants.items.size() <= kMostConstants &&
                           std::all_of(constants.items.begin(), constants.items.end(), [](const Json& item) { return item.kind == Json::Kind::integer; });
        require(sound, "at most 256 integer constants");
        text(fields, "source");
        made.in_strips = choice(fields, "grid", {"strips", "streams"}) == "strips";
        made.streams = static_cast<int>(number(fields, "streams", 1, kMostStreams));
        return made;
    }

    ProgramBuffer buffer(const Json& fields, const Program& program) {
        ProgramBuffer made;
        made.name = text(fields, "name");
        made.strips_of = text(fields, "strips_of");
        made.per_strip = number(fields, "per_strip", 0, kMostElements);
        require((made.per_strip > 0) == (program.kernel(made.strips_of) < program.kernels.size()), "strips of a kernel for a buffer");
        if (made.per_strip == 0) made.strips_of.clear();
        made.role = choice(fields, "role", {"input", "output", "scratch"});
        made.dtype = choice(fields, "dtype", kDtypes);
        made.per_pixel = number(fields, "per_pixel", 0, kMostElements);
        made.fixed = number(fields, "fixed", 0, kMostElements);
        made.first = static_cast<int>(number(fields, "first", 0, kMostElements));
        made.last = static_cast<int>(number(fields, "last", 0, kMostElements));
        return made;
    }

    ProgramLaunch launch(const Json& fields, const Program& program) {
        ProgramLaunch made{program.kernel(text(fields, "kernel")), {}};
        require(made.kernel < program.kernels.size(), "a kernel of the program in a launch");
        static const std::vector<std::string> kinds = {"buffer", "weights", "size", "strips"};
        for (const Json& entry : list(fields, "arguments", 64)) {
            const std::string kind = choice(entry, "kind", kinds);
            made.arguments.push_back({static_cast<ProgramArgument::Kind>(std::find(kinds.begin(), kinds.end(), kind) - kinds.begin()), text(entry, "name")});
        }
        require(made.arguments.size() == program.kernels[made.kernel].parameters.size(), "an argument for each parameter of a launch");
        return made;
    }

    // Every argument has the type of its parameter, nothing is read before it was written, lifetimes are as stated.
    void check_launches(const Program& program) {
        std::set<std::string> written;
        std::map<std::string, std::pair<int, int>> used;
        for (const ProgramBuffer& buffer : program.buffers) {
            if (buffer.role == "input") written.insert(buffer.name);
        }
        for (std::size_t index = 0; index < program.launches.size(); ++index) {
            const ProgramLaunch& launch = program.launches[index];
            const std::vector<ProgramParameter>& parameters = program.kernels[launch.kernel].parameters;
            std::set<std::string> writes;
            for (std::size_t i = 0; i < parameters.size(); ++i) {
                const ProgramArgument& argument = launch.arguments[i];
                const std::string where = parameters[i].name + " of launch " + std::to_string(index);
                require(type_of(program, argument) == parameters[i].type, parameters[i].type + " for " + where);
                const bool is_buffer = argument.kind == ProgramArgument::Kind::buffer;
                const ProgramBuffer* buffer = is_buffer ? program.buffer(argument.name) : nullptr;
                if (buffer != nullptr) {
                    const int at = static_cast<int>(index);
                    used.emplace(argument.name, std::make_pair(at, at)).first->second.second = at;
                    require(parameters[i].written || written.count(argument.name) != 0, "the contents of " + argument.name + " for " + where);
                }
                require(!parameters[i].written || (buffer != nullptr && buffer->role != "input"), "memory that may be written for " + where);
                if (parameters[i].written) writes.insert(argument.name);
            }
            written.insert(writes.begin(), writes.end());
        }
        require(written.size() == program.buffers.size() && used.size() == program.buffers.size(), "launches that write every buffer");
        for (const ProgramBuffer& buffer : program.buffers) {
            require(used[buffer.name] == std::make_pair(buffer.first, buffer.last), "the lifetimes that follow from the launches");
        }
    }

    // The parameter type that an argument fits, or an empty text if its name is unknown.
    static std::string type_of(const Program& program, const ProgramArgument& argument) {
        switch (argument.kind) {
            case ProgramArgument::Kind::buffer: {
                const ProgramBuffer* buffer = program.buffer(argument.name);
                return buffer == nullptr ? "" : buffer->dtype + "*";
            }
            case ProgramArgument::Kind::weights:
                for (const ProgramWeights& weights : program.weights) {
                    if (weights.name == argument.name) return weights.dtype + "*";
                }
                return "";
            case ProgramArgument::Kind::size:
                return argument.name == "height" || argument.name == "width" ? "int32" : "";
            case ProgramArgument::Kind::strips:
                return program.kernel(argument.name) < program.kernels.size() ? "int32" : "";
        }
        return "";
    }

    void read_weights(const Json& fields, Program& program) {
        const std::string& packed = blob(fields, "blob");
        std::int64_t end = 0;
        for (const Json& entry : list(fields, "arrays", 1024)) {
            ProgramWeights made{text(entry, "name"), choice(entry, "dtype", kDtypes), ""};
            const Json& shape = get(entry, "shape", Json::Kind::list);
            auto size = static_cast<std::int64_t>(bytes_of(made.dtype));
            require(shape.items.size() <= kMostDimensions, "a shape");
            for (const Json& side : shape.items) {
                require(side.kind == Json::Kind::integer && side.integer > 0 && side.integer <= kMostElements, "a shape");
                size *= side.integer;
                require(size <= static_cast<std::int64_t>(packed.size()), "the weights " + made.name + " within their blob");
            }
            const std::int64_t offset = number(entry, "offset", 0, static_cast<std::int64_t>(packed.size()));
            const bool fits = offset == static_cast<std::int64_t>(aligned(static_cast<std::size_t>(end))) &&
                              offset + size <= static_cast<std::int64_t>(packed.size());
            require(fits, "the weights " + made.name + " behind those before, within their blob");
            end = offset + size;
            made.bytes = packed.substr(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
            require(all_finite(made.bytes, made.dtype), "finite weights");
            program.weights.push_back(std::move(made));
        }
        require_unique(program.weights, "weights");
    }

    ProgramTarget target(const Json& fields, const Program& program) {
        ProgramTarget made{static_cast<int>(number(fields, "architecture", 10, 999)),
                           static_cast<int>(number(fields, "driver_version", 0, 1000000)), {}};
        const Json& kernels = get(fields, "kernels", Json::Kind::object);
        require(kernels.keys.size() == program.kernels.size(), "every kernel for sm_" + std::to_string(made.architecture));
        for (const ProgramKernel& kernel : program.kernels) {
            const Json& entry = get(kernels, kernel.name, Json::Kind::object);
            const Json& tile = get(entry, "tile", Json::Kind::object);
            const auto side = [&](const char* key, std::int64_t least, std::int64_t most) { return static_cast<int>(number(tile, key, least, most)); };
            const ProgramTile read{side("columns", 16, 256), side("rows", 1, 1024), side("warps", 1, 32)};
            require((read.warps & (read.warps - 1)) == 0, "a power of two for the warps of a tile");
            made.binaries.push_back({text(entry, "symbol"), read, static_cast<int>(number(entry, "shared_bytes", 0, kMostSharedBytes)),
                                     static_cast<int>(number(entry, "hidden_pointers", 0, 4)), blob(entry, "blob")});
        }
        return made;
    }

    ProgramTest test(const Json& fields) {
        ProgramTest made{{static_cast<int>(number(fields, "height", 8, 256)), static_cast<int>(number(fields, "width", 8, 256))}, {}, {}, 0};
        made.tolerance = get(fields, "tolerance", Json::Kind::real).real;
        require(made.tolerance > 0 && made.tolerance <= 0.1, "a tolerance of at most 0.1 for the self-test");
        const std::string &planes = blob(fields, "planes"), &fused = blob(fields, "fused");
        const std::size_t pixels = static_cast<std::size_t>(made.size.height) * static_cast<std::size_t>(made.size.width);
        require(planes.size() == 8 * pixels && fused.size() == 4 * pixels, "images of their size for the self-test");
        made.planes = floats(planes);
        made.fused = floats(fused);
        return made;
    }

    void check_visible(const Program& program) {
        std::size_t found = 0;
        for (const ProgramBuffer& buffer : program.buffers) {
            if (buffer.role == "scratch") continue;
            ++found;
            const bool known = (buffer.name == "planes" && buffer.role == "input" && buffer.dtype == "float32" && buffer.per_pixel == 2) ||
                               (buffer.name == "fused" && buffer.role == "output" && buffer.dtype == "float32" && buffer.per_pixel == 1) ||
                               (buffer.name == "levels" && buffer.role == "output" && buffer.dtype == "uint8" && buffer.per_pixel == 1);
            require(known && buffer.per_strip == 0 && buffer.fixed == 0, "the inputs and outputs planes, fused and levels");
        }
        require(found == 3, "the inputs and outputs planes, fused and levels");
    }

    const std::string& blob(const Json& fields, const char* key) {
        return blobs_[static_cast<std::size_t>(number(fields, key, 0, static_cast<std::int64_t>(blobs_.size()) - 1))];
    }

    const Json& get(const Json& fields, const std::string& key, Json::Kind kind) {
        const Json* value = fields.find(key);
        if (value == nullptr || value->kind != kind) refuse("another value in the field " + key);
        return *value;
    }

    const std::vector<Json>& list(const Json& fields, const char* key, std::size_t most) {
        const std::vector<Json>& items = get(fields, key, Json::Kind::list).items;
        const bool objects = std::all_of(items.begin(), items.end(), [](const Json& item) { return item.kind == Json::Kind::object; });
        require(!items.empty() && items.size() <= most && objects, "1 to " + std::to_string(most) + " objects in " + key);
        return items;
    }

    const std::string& text(const Json& fields, const char* key) { return get(fields, key, Json::Kind::text).text; }

    std::int64_t number(const Json& fields, const char* key, std::int64_t least, std::int64_t most) {
        const std::int64_t value = get(fields, key, Json::Kind::integer).integer;
        require(least <= value && value <= most, std::to_string(least) + " to " + std::to_string(most) + " in the field " + key);
        return value;
    }

    std::string choice(const Json& fields, const char* key, const std::vector<std::string>& choices) {
        const std::string& value = text(fields, key);
        require(holds(choices, value), std::string("a known word in the field ") + key);
        return value;
    }

    template <class Named>
    void require_unique(const std::vector<Named>& items, const char* what) {
        std::set<std::string> names;
        for (const Named& item : items) require(names.insert(item.name).second, std::string(what) + " with different names");
    }

    void require(bool sound, const std::string& due) {
        if (!sound) refuse(due);
    }

    [[noreturn]] void refuse(const std::string& due) {
        throw Failure(REFUSION_EDGE_DAMAGED, name_ + " is damaged: expected " + due + "; build it again with this version of refusion-edge");
    }

    const std::string& name_;
    std::vector<std::string> blobs_;
};

}  // namespace

Program parse_program(const std::string& data, const std::string& name) { return Reader(name).program(data); }

}  // namespace refusion
