// The Python module _native. Arrays come through the buffer protocol, which knows any strides; nothing is copied.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <climits>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "batches.hpp"
#include "expansion.hpp"
#include "fast_network.hpp"
#include "isa.hpp"
#include "network.hpp"
#include "parameters.hpp"

namespace nb = nanobind;
using refusion::FastNetwork;
using refusion::Network;

namespace {

// Holds on to the memory of an array for as long as it lives.
class Array {
  public:
    Array(nb::handle object, char format, int dimensions, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0) {
            throw nb::python_error();
        }
        std::string found = buffer_.format ? buffer_.format : "B";
        // NumPy calls a misaligned array's elements "=f": the same bytes, but not where the compiler would put them.
        if (found.size() == 2 && found[0] == '=') found.erase(0, 1);
        if (found != std::string(1, format) || buffer_.ndim != dimensions) {
            const int got = buffer_.ndim;
            PyBuffer_Release(&buffer_);
            throw std::invalid_argument("an array has " + std::to_string(got) + " dimensions and the format '" + found + "' instead of " +
                                        std::to_string(dimensions) + " and '" + format + "'");
        }
    }
    ~Array() { PyBuffer_Release(&buffer_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    Py_ssize_t side(int axis) const { return buffer_.shape[axis]; }
    Py_ssize_t stride(int axis) const { return buffer_.strides[axis]; }
    void* data() const { return buffer_.buf; }
    bool contiguous() const { return PyBuffer_IsContiguous(&buffer_, 'C') != 0; }
    refusion::PlaneView plane() const { return {buffer_.buf, buffer_.strides[0], buffer_.strides[1]}; }

  private:
    Py_buffer buffer_{};
};

void require_same_size(const Array& a, const Array& b) {
    if (a.side(0) != b.side(0) || a.side(1) != b.side(1) || a.side(0) > INT_MAX || a.side(1) > INT_MAX) {
        const auto size = [](const Array& plane) { return std::to_string(plane.side(1)) + "x" + std::to_string(plane.side(0)); };
        throw std::invalid_argument("the planes differ in size (" + size(a) + " and " + size(b) + ", width x height); resize one of them");
    }
}

const float* require_parameters(const Array& flat, std::size_t count) {
    if (flat.side(0) != static_cast<Py_ssize_t>(count) || flat.stride(0) != static_cast<Py_ssize_t>(sizeof(float))) {
        throw std::invalid_argument("there are " + std::to_string(flat.side(0)) + " parameters instead of " + std::to_string(count) +
                                    ", or they are not consecutive");
    }
    return static_cast<const float*>(flat.data());
}

// The arrays of a call of `fuse`.
struct FuseCall {
    const Array a, b, fused;

    FuseCall(nb::handle a_object, nb::handle b_object, nb::handle fused_object)
        : a(a_object, 'f', 2, false), b(b_object, 'f', 2, false), fused(fused_object, 'f', 2, true) {
        require_same_size(a, b);
        require_same_size(a, fused);
        if (fused.stride(1) != static_cast<Py_ssize_t>(sizeof(float))) {
            throw std::invalid_argument("the columns of the result are not consecutive; pass a contiguous array");
        }
    }
    int height() const { return static_cast<int>(a.side(0)); }
    int width() const { return static_cast<int>(a.side(1)); }
    refusion::PlaneTarget target() const { return {fused.data(), fused.stride(0)}; }
};

void fuse(Network& network, nb::handle a, nb::handle b, nb::handle fused) {
    const FuseCall call(a, b, fused);
    const nb::gil_scoped_release released;
    network.fuse(call.a.plane(), call.b.plane(), call.height(), call.width(), call.target());
}

void fuse_fast(FastNetwork& network, nb::handle a, nb::handle b, nb::handle fused, const std::optional<refusion::FastStatistics>& statistics) {
    const FuseCall call(a, b, fused);
    const nb::gil_scoped_release released;
    network.fuse(call.a.plane(), call.b.plane(), call.height(), call.width(), call.target(), statistics ? &*statistics : nullptr);
}

refusion::FastStatistics fast_statistics(FastNetwork& network, nb::handle a_object, nb::handle b_object) {
    const Array a(a_object, 'f', 2, false), b(b_object, 'f', 2, false);
    require_same_size(a, b);
    const nb::gil_scoped_release released;
    return network.statistics(a.plane(), b.plane(), static_cast<int>(a.side(0)), static_cast<int>(a.side(1)));
}

nb::list names_and_shapes(const std::vector<refusion::Parameter>& parameters) {
    nb::list rows;
    for (const refusion::Parameter& row : parameters) rows.append(nb::make_tuple(row.name, nb::tuple(nb::cast(row.shape))));
    return rows;
}

// The arrays of a call, held until it is done.
class HeldArrays {
  public:
    const Array& hold(nb::handle object, int dimensions, bool writable) {
        held_.push_back(std::make_unique<Array>(object, 'f', dimensions, writable));
        const Array& array = *held_.back();
        if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0) {
            throw std::invalid_argument("an array is not aligned; copy it");
        }
        return array;
    }

  private:
    std::vector<std::unique_ptr<Array>> held_;
};

// The arrays of one expansion of a batch.
class ExpansionCall : HeldArrays {
  public:
    using Lists = std::vector<nb::list>;  // inputs, norm, weights, taps, out, residual: as `points` of refusion_edge.kernels.cpu.expansion

    ExpansionCall(const Lists& points, nb::list y, bool gated, bool residual_is_input, bool writes_y) {
        require(points.size() == 6, "the arrays are not in six lists");
        const std::size_t inputs = points[0].size(), operands = points[2].size();
        require(inputs >= 1 && inputs <= 2 && operands >= 1 && (inputs == 1 || inputs == operands),
                "there is neither one input nor one for each operand");
        require(points[3].size() == operands && y.size() == (gated ? 1 : operands) && (!gated || operands == 2),
                "the numbers of weights, taps and results do not fit that of the operands (a gated pair has one result)");
        require(points[1].size() == 0 || (points[1].size() == 2 && inputs == 1), "a norm has two arrays, and belongs to the only input");
        require(points[4].size() == (gated ? 1u : 0u) && points[5].size() <= points[4].size(),
                "only a gated pair has weights back, and a residual");
        job_.gated = gated;
        job_.residual_is_input = residual_is_input;
        job_.inputs.resize(inputs);
        job_.operands.resize(operands);
        job_.channels = side(hold(points[2][0], 4, false), 0);
        for (std::size_t n = 0; n < inputs; ++n) job_.inputs[n].channels = side(hold(points[0][n], 4, false), 3);
        for (std::size_t n = 0; n < operands; ++n) job_.operands[n].input = inputs == 1 ? 0 : n;
        if (gated) job_.outputs = side(hold(points[4][0], 4, false), 0);
        require(points[1].size() == 0 || job_.inputs[0].channels <= refusion::kNormChannels, "the norm has too many channels");
        require(!residual_is_input || (inputs == 1 && points[5].size() == 1 && job_.outputs == job_.inputs[0].channels),
                "the residual does not have the shape of the input");
        const Array& first = hold(points[0][0], 4, false);
        job_.images = side(first, 0);
        job_.height = side(first, 1);
        job_.width = side(first, 2);
        take(points, &refusion::ExpansionInput::x, &refusion::TrainedParameter::value, &refusion::Expansion::residual, false);
        for (nb::handle array : y) job_.y.push_back(features(array, gated ? job_.outputs : job_.channels, writes_y));
    }
    void take_tangents(const Lists& lists) {
        take(lists, &refusion::ExpansionInput::x_tangent, &refusion::TrainedParameter::tangent, &refusion::Expansion::residual_tangent, false);
    }
    void take_gradients(const Lists& lists) {
        take(lists, &refusion::ExpansionInput::x_gradient, &refusion::TrainedParameter::gradient, nullptr, true);
    }
    void run(refusion::ExpansionPass pass, int threads, const std::string& isa) const {
        const nb::gil_scoped_release released;
        refusion::expand(pass, job_, threads, isa);
    }

  private:
    template <class Pointer>
    void take(const Lists& lists, refusion::Pixels<float> refusion::ExpansionInput::*input, Pointer refusion::TrainedParameter::*parameter,
              refusion::Pixels<float> refusion::Expansion::*residual, bool writable) {
        const auto count = [&](std::size_t list, std::size_t expected) {
            require(lists.size() == 6 && lists[list].size() == expected, "a list does not have as many arrays as the points");
        };
        count(0, job_.inputs.size());
        count(2, job_.operands.size());
        count(3, job_.operands.size());
        count(4, job_.gated ? 1 : 0);
        for (std::size_t n = 0; n < job_.inputs.size(); ++n) job_.inputs[n].*input = features(lists[0][n], job_.inputs[n].channels, writable);
        const bool norm = lists[1].size() > 0;
        require(!job_.norm_weight.value || norm, "a list lacks the norm");
        if (norm) {
            count(1, 2);
            job_.norm_weight.*parameter = numbers(lists[1][0], 1, job_.inputs[0].channels, writable);
            job_.norm_bias.*parameter = numbers(lists[1][1], 1, job_.inputs[0].channels, writable);
        }
        for (std::size_t n = 0; n < job_.operands.size(); ++n) {
            refusion::ExpansionOperand& operand = job_.operands[n];
            const Py_ssize_t inputs = job_.inputs[operand.input].channels;
            operand.weights.*parameter = numbers(lists[2][n], 4, job_.channels * inputs, writable);
            operand.taps.*parameter = numbers(lists[3][n], 4, job_.channels * Py_ssize_t{9}, writable);
        }
        if (job_.gated) job_.out.*parameter = numbers(lists[4][0], 4, static_cast<Py_ssize_t>(job_.outputs) * job_.channels, writable);
        if (residual && lists[5].size() > 0) job_.*residual = features(lists[5][0], job_.outputs, writable);
    }
    static void require(bool met, const char* sentence) {
        if (!met) throw std::invalid_argument(sentence);
    }
    refusion::Pixels<float> features(nb::handle object, int channels, bool writable) {
        constexpr Py_ssize_t number = sizeof(float);
        const Array& array = hold(object, 4, writable);
        require(array.side(0) == job_.images && array.side(1) == job_.height && array.side(2) == job_.width && array.side(3) == channels,
                "the features differ in size, or their channels from those of the weights");
        const Py_ssize_t pitch = array.stride(2);
        require((channels == 1 || array.stride(3) == number) && pitch % number == 0 && pitch >= channels * number &&
                    (job_.height == 1 || array.stride(1) == pitch * job_.width) &&
                    (job_.images == 1 || array.stride(0) == pitch * job_.width * job_.height),
                "the channels are not consecutive, or the pixels not at one distance; pass a contiguous array");
        return {static_cast<float*>(array.data()), pitch / number};
    }
    float* numbers(nb::handle object, int dimensions, Py_ssize_t count, bool writable) {
        const Array& array = hold(object, dimensions, writable);
        Py_ssize_t found = 1;
        for (int axis = 0; axis < dimensions; ++axis) found *= array.side(axis);
        require(found == count && array.contiguous(), "the parameters are not contiguous, or not as many as the channels require");
        return static_cast<float*>(array.data());
    }
    static int side(const Array& array, int axis) {
        require(array.side(axis) >= 1 && array.side(axis) <= INT_MAX / 16, "the features are empty, or too large");
        return static_cast<int>(array.side(axis));
    }

    refusion::Expansion job_;
};

void expand(const ExpansionCall::Lists& points, nb::list y, bool gated, bool residual_is_input, int threads, const std::string& isa) {
    ExpansionCall(points, y, gated, residual_is_input, true).run(refusion::ExpansionPass::values, threads, isa);
}

void expand_tangent(const ExpansionCall::Lists& points, const ExpansionCall::Lists& tangents, nb::list y, bool gated,
                    bool residual_is_input, int threads, const std::string& isa) {
    ExpansionCall call(points, y, gated, residual_is_input, true);
    call.take_tangents(tangents);
    call.run(refusion::ExpansionPass::tangents, threads, isa);
}

void expand_gradient(const ExpansionCall::Lists& points, nb::list slopes, const ExpansionCall::Lists& gradients, bool gated,
                     bool residual_is_input, int threads, const std::string& isa) {
    ExpansionCall call(points, slopes, gated, residual_is_input, false);
    call.take_gradients(gradients);
    call.run(refusion::ExpansionPass::gradients, threads, isa);
}

// Features (B, L, C) of one batch for products over its pixels.
class BatchCall : HeldArrays {
  public:
    explicit BatchCall(nb::handle object) {
        const Array& first = hold(object, 3, false);
        if (first.side(0) < 1 || first.side(0) > INT_MAX || first.side(1) < 1) throw std::invalid_argument("the features are empty");
        shape_ = {static_cast<int>(first.side(0)), first.side(1)};
    }
    refusion::BatchShape shape() const { return shape_; }

    refusion::Pixels<float> features(nb::handle object, bool writable, int* channels) {
        constexpr Py_ssize_t number = sizeof(float);
        const Array& array = hold(object, 3, writable);
        const Py_ssize_t pitch = array.stride(1);
        if (array.side(0) != shape_.images || array.side(1) != shape_.pixels || array.side(2) < 1 || array.side(2) > INT_MAX / 16 ||
            (*channels != 0 && array.side(2) != *channels)) {
            throw std::invalid_argument("the features differ in batch, or their channels from those of the products");
        }
        *channels = static_cast<int>(array.side(2));
        if ((*channels > 1 && array.stride(2) != number) || pitch % number != 0 || pitch < *channels * number ||
            (shape_.images > 1 && array.stride(0) != pitch * shape_.pixels)) {
            throw std::invalid_argument("the channels are not consecutive, or the pixels not at one distance; pass a contiguous array");
        }
        return {static_cast<float*>(array.data()), pitch / number};
    }
    refusion::Pixels<const float> read(nb::handle object, int* channels) {
        if (object.is_none()) return {};
        const refusion::Pixels<float> found = features(object, false, channels);
        return {found.data, found.pitch};
    }
    // (B, rows, columns), or (B, columns) where rows is 0.
    float* numbers(nb::handle object, int rows, int columns, bool writable) {
        if (object.is_none()) return nullptr;
        const int dimensions = rows ? 3 : 2;
        const Array& array = hold(object, dimensions, writable);
        if (array.side(0) != shape_.images || (rows && array.side(1) != rows) || array.side(dimensions - 1) != columns || !array.contiguous()) {
            throw std::invalid_argument("the numbers for each image are not contiguous, or not as many as the channels require");
        }
        return static_cast<float*>(array.data());
    }

  private:
    refusion::BatchShape shape_{};
};

void multiply(nb::handle x_object, nb::handle weights_object, nb::handle added_object, nb::handle factors_object, nb::handle y_object,
              int threads, const std::string& isa) {
    BatchCall call(x_object);
    int inputs = 0, outputs = 0;
    const auto x = call.read(x_object, &inputs);
    const auto y = call.features(y_object, true, &outputs);
    const auto added = call.read(added_object, &outputs);
    const float *weights = call.numbers(weights_object, outputs, inputs, false), *factors = call.numbers(factors_object, 0, outputs, false);
    if (!weights || (factors && !added.data)) throw std::invalid_argument("the weights are missing, or what the factors multiply");
    const nb::gil_scoped_release released;
    refusion::multiply(call.shape(), inputs, outputs, x, weights, added, factors, y, threads, isa);
}

void inner_products(nb::handle a_object, nb::handle b_object, nb::handle sums_object, int threads, const std::string& isa) {
    BatchCall call(a_object);
    int rows = 0, columns = 0;
    const auto a = call.features(a_object, false, &rows), b = call.features(b_object, false, &columns);
    float* sums = call.numbers(sums_object, rows, columns, true);
    if (!sums) throw std::invalid_argument("the array for the sums is missing");
    const nb::gil_scoped_release released;
    refusion::inner_products(call.shape(), rows, columns, {a.data, a.pitch}, {b.data, b.pitch}, sums, threads, isa);
}

void dot_products(nb::handle a_object, nb::handle b_object, nb::handle sums_object, int threads, const std::string& isa) {
    BatchCall call(a_object);
    int channels = 0;
    const auto a = call.features(a_object, false, &channels), b = call.features(b_object, false, &channels);
    float* sums = call.numbers(sums_object, 0, channels, true);
    if (!sums) throw std::invalid_argument("the array for the sums is missing");
    const nb::gil_scoped_release released;
    refusion::dot_products(call.shape(), channels, {a.data, a.pitch}, {b.data, b.pitch}, sums, threads, isa);
}

template <class Set>
std::vector<std::string> isas_of(const std::vector<const Set*>& usable) {
    std::vector<std::string> names;
    for (const Set* kernels : usable) names.emplace_back(kernels->isa);
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Fused kernels of the fusion network for the CPU; see refusion_edge.backends.native.";
    nb::class_<Network>(m, "Network")
        .def("__init__",
             [](Network* self, nb::handle flat_object, int threads, const std::string& isa, const std::string& precision) {
                 const Array flat(flat_object, 'f', 1, false);
                 new (self) Network(require_parameters(flat, refusion::parameter_count()), threads, isa, refusion::find_precision(precision));
             },
             nb::arg("parameters"), nb::arg("threads"), nb::arg("isa") = "", nb::arg("precision") = "fp32")
        .def("fuse", &fuse, nb::arg("a"), nb::arg("b"), nb::arg("fused"))
        .def_prop_ro("isa", &Network::isa)
        .def_prop_ro("threads", &Network::threads);
    m.def("isas", [](const std::string& precision) { return isas_of(refusion::usable_kernels(refusion::find_precision(precision))); },
          nb::arg("precision") = "fp32");
    m.def("fast_isas", [](const std::string& precision) { return isas_of(refusion::usable_fast_kernels(refusion::find_precision(precision))); },
          nb::arg("precision") = "fp32");
    m.def("parameters", [] { return names_and_shapes(refusion::parameters()); });
    nb::class_<FastNetwork>(m, "FastNetwork")
        .def("__init__",
             [](FastNetwork* self, nb::handle flat_object, int channels, int convolutions, int factor, int threads, const std::string& isa,
                const std::string& precision) {
                 const refusion::FastLayout layout{channels, convolutions, factor};
                 refusion::require_layout(layout);
                 const Array flat(flat_object, 'f', 1, false);
                 const refusion::Parameter last = refusion::fast_parameters(layout).back();
                 new (self) FastNetwork(layout, require_parameters(flat, last.offset + last.size), threads, isa,
                                        refusion::find_precision(precision));
             },
             nb::arg("parameters"), nb::arg("channels"), nb::arg("convolutions"), nb::arg("factor"), nb::arg("threads"), nb::arg("isa") = "",
             nb::arg("precision") = "fp32")
        .def("fuse", &fuse_fast, nb::arg("a"), nb::arg("b"), nb::arg("fused"), nb::arg("statistics") = nb::none())
        .def("statistics", &fast_statistics, nb::arg("a"), nb::arg("b"))
        .def_prop_ro("isa", &FastNetwork::isa)
        .def_prop_ro("threads", &FastNetwork::threads);
    m.def("fast_parameters", [](int channels, int convolutions, int factor) {
        const refusion::FastLayout layout{channels, convolutions, factor};
        refusion::require_layout(layout);
        return names_and_shapes(refusion::fast_parameters(layout));
    }, nb::arg("channels"), nb::arg("convolutions"), nb::arg("factor"));
    m.def("expand", &expand, nb::arg("points"), nb::arg("y"), nb::arg("gated") = false, nb::arg("residual_is_input") = false,
          nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("expand_tangent", &expand_tangent, nb::arg("points"), nb::arg("tangents"), nb::arg("y"), nb::arg("gated") = false,
          nb::arg("residual_is_input") = false, nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("expand_gradient", &expand_gradient, nb::arg("points"), nb::arg("slopes"), nb::arg("gradients"), nb::arg("gated") = false,
          nb::arg("residual_is_input") = false, nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("multiply", &multiply, nb::arg("x"), nb::arg("weights"), nb::arg("added").none(), nb::arg("factors").none(), nb::arg("y"),
          nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("inner_products", &inner_products, nb::arg("a"), nb::arg("b"), nb::arg("sums"), nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("dot_products", &dot_products, nb::arg("a"), nb::arg("b"), nb::arg("sums"), nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("multiply_adds", [](const std::string& isa, long rounds) {
        const nb::gil_scoped_release released;
        return refusion::find_kernels(isa, refusion::Precision::fp32).multiply_adds(rounds);
    }, nb::arg("isa"), nb::arg("rounds"));
}
