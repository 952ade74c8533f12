#include "plan_bundle.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <sstream>

#include "failure.hpp"
#include "json.hpp"
#include "sha256.hpp"
#include "whole_file.hpp"

namespace refusion {
namespace {

constexpr char kSchema[] = "refusion-edge/bundle/2";
constexpr std::size_t kMostManifestBytes = std::size_t{1} << 20, kMostPlanBytes = std::size_t{1} << 30, kMostListBytes = std::size_t{16} << 20;
constexpr std::size_t kDigits = 64;  // of a SHA-256

std::string read(const std::string& path, std::size_t most, const char* remedy = "give the folder of an engine bundle") {
    struct stat status {};
    // A pipe would be waited for.
    const bool is_file = stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
    std::optional<std::string> data = is_file ? read_whole_file(path, most) : std::nullopt;
    if (!data) throw Failure(REFUSION_EDGE_UNREADABLE, path + " cannot be read; " + remedy);
    return *std::move(data);
}

[[noreturn]] void refuse(const std::string& path, const std::string& lacks) {
    throw Failure(REFUSION_EDGE_DAMAGED, path + " lacks " + lacks + "; build the bundle again");
}

// The value of a key, of a kind; null if it may be missing and is.
const Json* find(const Json& object, const char* key, Json::Kind kind, const std::string& path, bool may_miss = false) {
    const Json* value = object.find(key);
    if (value == nullptr && may_miss) return nullptr;
    if (value == nullptr || value->kind != kind) refuse(path, std::string("a valid field ") + key);
    return value;
}

std::string trusted_file() {
    const auto variable = [](const char* name) {
        const char* value = std::getenv(name);
        return std::string(value == nullptr ? "" : value);
    };
    if (std::string chosen = variable("REFUSION_EDGE_TRUSTED"); !chosen.empty()) return chosen;
    const std::string state = variable("XDG_STATE_HOME");
    return (state.empty() ? variable("HOME") + "/.local/state" : state) + "/refusion-edge/trusted-engines";
}

bool is_trusted(const std::string& digest) {
    const std::string path = trusted_file();
    struct stat status {};
    if (stat(path.c_str(), &status) != 0) return false;
    if ((status.st_uid != geteuid() && status.st_uid != 0) || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        throw Failure(REFUSION_EDGE_UNTRUSTED,
                      "other users can change " + path + ", which lists the compiled engines that may run; as its owner, run: chmod go-w " + path);
    }
    std::istringstream lines(read(path, kMostListBytes, "it lists the compiled engines that may run; see SECURITY.md"));
    for (std::string line; std::getline(lines, line);) {
        if (line.substr(0, kDigits) == digest) return true;
    }
    return false;
}

}  // namespace

PlanBundle read_plan_bundle(const std::string& path, bool trust) {
    const std::string file = path + "/manifest.json", text = read(file, kMostManifestBytes);
    Json manifest;
    try {
        manifest = parse_json(text);
    } catch (const Malformed&) {
        refuse(file, "JSON");
    }
    if (manifest.kind != Json::Kind::object) refuse(file, "an object");
    const Json* schema = manifest.find("schema");
    if (schema == nullptr || schema->text != kSchema) refuse(file, std::string("the schema ") + kSchema);
    const Json& spec = *find(manifest, "spec", Json::Kind::object, file);
    const std::string backend = find(spec, "backend", Json::Kind::text, file)->text;
    if (backend != "tensorrt" && backend != "tensorrt-rtx") {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, path + " was built for " + backend + ", not for TensorRT; open its engine file instead");
    }
    const Json* named = find(spec, "network", Json::Kind::text, file, true);
    const std::string network = named == nullptr ? "refusion" : named->text;
    if (network != "refusion" && network != "fast") refuse(file, "a known network");
    const Json* settings = find(spec, "settings", Json::Kind::object, file, true);
    const Json* compatible = settings == nullptr ? nullptr : find(*settings, "version_compatible", Json::Kind::boolean, file, true);
    // The gate needs the fp32 reference, which only Python has.
    if (find(manifest, "gate", Json::Kind::object, file)->find("not_run") != nullptr) {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "the accuracy of " + path + " has not been checked on a device; run here: refusion-edge verify " + path);
    }
    const std::string engine = find(manifest, "engine", Json::Kind::text, file)->text;
    // A name with a separator would reach outside the folder.
    if (engine.empty() || engine.find('/') != std::string::npos || engine == "..") refuse(file, "a plain file name for the engine");
    const std::string digest = find(*find(manifest, "files", Json::Kind::object, file), engine.c_str(), Json::Kind::text, file)->text;
    std::string plan = read(path + "/" + engine, kMostPlanBytes);
    if (sha256(plan.data(), plan.size()) != digest) refuse(path + "/" + engine, "the SHA-256 of the manifest: it was changed or cut short");
    if (!trust && !is_trusted(digest)) {
        throw Failure(REFUSION_EDGE_UNTRUSTED, path + "/" + engine + " is compiled code (SHA-256 " + digest.substr(0, 12) +
                                                   "...) that was not built here; pass trust if you would run any program from its author, or build it here");
    }
    return {path, std::move(plan), network, compatible != nullptr && compatible->boolean};
}

}  // namespace refusion
