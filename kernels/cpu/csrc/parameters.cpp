#include "parameters.hpp"

#include <stdexcept>
#include <utility>

namespace refusion {
namespace {

class Table {
  public:
    Table() {
        add("project_in_1.weight", {kDim, 1, 3, 3});
        add("project_in_2.weight", {kDim, 1, 3, 3});
        for (const char* encoder : {"encoder1", "encoder2"}) {
            for (int index = 0; index < kBlocks; ++index) add_block(encoder, index, kDim);
        }
        add_fusion_module("FM.", kDim);
        for (int index = 0; index < kBlocks; ++index) add_block("decoder", index, 2 * kDim);
        add("project_out_0.weight", {kDim, 2 * kDim, 3, 3});
        add("project_out_1.weight", {1, kDim, 3, 3});
    }

    std::vector<Parameter> rows;
    std::size_t count = 0;

  private:
    void add(std::string name, std::vector<int> shape) {
        std::size_t size = 1;
        for (int side : shape) size *= static_cast<std::size_t>(side);
        rows.push_back({std::move(name), std::move(shape), count, size});
        count += size;
    }

    void add_block(const std::string& stage, int index, int dim) {
        const std::string prefix = stage + "." + std::to_string(index) + ".";
        const int hidden = dim * kExpansion;
        add(prefix + "norm1.body.weight", {dim});
        add(prefix + "norm1.body.bias", {dim});
        add(prefix + "attn.temperature", {kHeads, 1, 1});
        add(prefix + "attn.qkv.weight", {3 * dim, dim, 1, 1});
        add(prefix + "attn.qkv_dwconv.weight", {3 * dim, 1, 3, 3});
        add(prefix + "attn.project_out.weight", {dim, dim, 1, 1});
        add(prefix + "norm2.body.weight", {dim});
        add(prefix + "norm2.body.bias", {dim});
        add(prefix + "ffn.project_in.weight", {2 * hidden, dim, 1, 1});
        add(prefix + "ffn.dwconv.weight", {2 * hidden, 1, 3, 3});
        add(prefix + "ffn.project_out.weight", {dim, hidden, 1, 1});
    }

    void add_fusion_module(const std::string& prefix, int dim) {
        const int hidden = 2 * dim * kExpansion;
        add(prefix + "temperature1", {kHeads, 1, 1});
        add(prefix + "temperature2", {kHeads, 1, 1});
        for (const char* source : {"1", "2"}) {
            add(prefix + "qkv" + source + ".weight", {3 * dim, dim, 1, 1});
            add(prefix + "qkv" + source + "_dwconv.weight", {3 * dim, 1, 3, 3});
        }
        add(prefix + "project_mid1.weight", {dim, dim, 1, 1});
        add(prefix + "project_mid2.weight", {dim, dim, 1, 1});
        add(prefix + "project_E.weight", {2 * hidden, 2 * dim, 1, 1});
        add(prefix + "project_E_d.weight", {2 * hidden, 1, 3, 3});
        for (const char* source : {"1", "2"}) {
            add(prefix + "project_E" + source + ".weight", {hidden, dim, 1, 1});
            add(prefix + "project_E" + source + "_d.weight", {hidden, 1, 3, 3});
        }
        add(prefix + "project_out1.weight", {2 * dim, hidden, 1, 1});
        add(prefix + "project_out2.weight", {2 * dim, hidden, 1, 1});
    }
};

const Table& table() {
    static const Table made;
    return made;
}

}  // namespace

const std::vector<Parameter>& parameters() { return table().rows; }

std::size_t parameter_count() { return table().count; }

const float* find_parameter(const float* flat, const std::string& name) {
    for (const Parameter& row : parameters()) {
        if (row.name == name) return flat + row.offset;
    }
    throw std::logic_error("no parameter " + name);
}

}  // namespace refusion
