// The Python module _native. Arrays come through the buffer protocol, which knows any strides; nothing is copied.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <climits>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.hpp"
#include "network.hpp"
#include "parameters.hpp"
#include "reference.hpp"
#include "spreading.hpp"

namespace nb = nanobind;
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
            throw std::invalid_argument("expected an array of " + std::to_string(dimensions) + " dimensions and format '" + format +
                                        "', got " + std::to_string(got) + " and '" + found + "'.");
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
        throw std::invalid_argument("expected planes of one size.");
    }
}

const float* require_parameters(const Array& flat) {
    if (flat.side(0) != static_cast<Py_ssize_t>(refusion::parameter_count()) || flat.stride(0) != static_cast<Py_ssize_t>(sizeof(float))) {
        throw std::invalid_argument("expected " + std::to_string(refusion::parameter_count()) + " consecutive parameters, got " +
                                    std::to_string(flat.side(0)) + ".");
    }
    return static_cast<const float*>(flat.data());
}

void fuse(Network& network, nb::handle a_object, nb::handle b_object, nb::handle fused_object) {
    const Array a(a_object, 'f', 2, false), b(b_object, 'f', 2, false), fused(fused_object, 'f', 2, true);
    require_same_size(a, b);
    require_same_size(a, fused);
    if (fused.stride(1) != static_cast<Py_ssize_t>(sizeof(float))) throw std::invalid_argument("expected consecutive columns to write to.");
    const nb::gil_scoped_release released;
    network.fuse(a.plane(), b.plane(), static_cast<int>(a.side(0)), static_cast<int>(a.side(1)), {fused.data(), fused.stride(0)});
}

void fuse_reference(nb::handle flat_object, nb::handle a_object, nb::handle b_object, nb::handle fused_object) {
    const Array flat(flat_object, 'f', 1, false), a(a_object, 'f', 2, false), b(b_object, 'f', 2, false), fused(fused_object, 'd', 2, true);
    require_same_size(a, b);
    require_same_size(a, fused);
    const float* parameters = require_parameters(flat);
    if (fused.stride(1) != static_cast<Py_ssize_t>(sizeof(double)) || fused.stride(0) != fused.side(1) * fused.stride(1)) {
        throw std::invalid_argument("expected a contiguous array to write to.");
    }
    const nb::gil_scoped_release released;
    refusion::fuse_reference(parameters, a.plane(), b.plane(), static_cast<int>(a.side(0)), static_cast<int>(a.side(1)),
                             static_cast<double*>(fused.data()));
}

// The arrays of one depthwise convolution of a batch, in the order the pass takes them, held until it is done.
class SpreadCall {
  public:
    SpreadCall(nb::handle y, bool writable) { y_ = features(y, writable); }

    // Lists in which each input has its array: (B, H, W, C) for features, (C, 1, 3, 3) for taps.
    void take_features(nb::list arrays, refusion::Features refusion::SpreadInput::*member, bool writable) {
        for (std::size_t n = 0; n < grown(arrays); ++n) inputs_[n].*member = features(arrays[n], writable);
    }
    template <class Pointer>
    void take_taps(nb::list arrays, Pointer refusion::SpreadInput::*member, bool writable) {
        for (std::size_t n = 0; n < grown(arrays); ++n) inputs_[n].*member = static_cast<Pointer>(taps(arrays[n], writable));
    }
    void run(refusion::SpreadPass pass, int threads, const std::string& isa) const {
        const nb::gil_scoped_release released;
        refusion::spread(pass, shape_, inputs_, y_, threads, isa);
    }

  private:
    std::size_t grown(const nb::list& arrays) {
        if (arrays.size() < 1 || arrays.size() > refusion::kSpreadForms || (!inputs_.empty() && inputs_.size() != arrays.size())) {
            throw std::invalid_argument("expected one or two inputs, and as many arrays in every list.");
        }
        inputs_.resize(arrays.size());
        return arrays.size();
    }
    const Array& hold(nb::handle object, bool writable) {
        held_.push_back(std::make_unique<Array>(object, 'f', 4, writable));
        const Array& array = *held_.back();
        if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0) throw std::invalid_argument("expected aligned arrays.");
        return array;
    }
    refusion::Features features(nb::handle object, bool writable) {
        constexpr Py_ssize_t number = sizeof(float);
        const Array& array = hold(object, writable);
        const bool first = held_.size() == 1;
        const int found[4] = {side(array, 0), side(array, 1), side(array, 2), side(array, 3)};
        if (first) shape_ = {found[0], found[1], found[2], found[3]};
        const Py_ssize_t pitch = array.stride(2);
        if (found[0] != shape_.pictures || found[1] != shape_.height || found[2] != shape_.width || found[3] != shape_.channels) {
            throw std::invalid_argument("expected features of one shape.");
        }
        if ((found[3] > 1 && array.stride(3) != number) || pitch % number != 0 || pitch < found[3] * number ||
            (found[1] > 1 && array.stride(1) != pitch * found[2]) || (found[0] > 1 && array.stride(0) != pitch * found[2] * found[1])) {
            throw std::invalid_argument("expected consecutive channels, and pixels at one distance from each other.");
        }
        return {static_cast<float*>(array.data()), pitch / number};
    }
    float* taps(nb::handle object, bool writable) {
        const Array& array = hold(object, writable);
        if (array.side(0) != shape_.channels || array.side(1) * array.side(2) * array.side(3) != 9 || !array.contiguous()) {
            throw std::invalid_argument("expected contiguous taps, nine for every channel.");
        }
        return static_cast<float*>(array.data());
    }
    static int side(const Array& array, int axis) {
        if (array.side(axis) < 1 || array.side(axis) > INT_MAX / 16) throw std::invalid_argument("expected features of a size in reach, and not empty.");
        return static_cast<int>(array.side(axis));
    }

    std::vector<std::unique_ptr<Array>> held_;
    refusion::BatchShape shape_{};
    refusion::Features y_;
    std::vector<refusion::SpreadInput> inputs_;
};

void spread(nb::list x, nb::list taps, nb::handle y, int threads, const std::string& isa) {
    using refusion::SpreadInput;
    SpreadCall call(y, true);
    call.take_features(x, &SpreadInput::x, false);
    call.take_taps(taps, &SpreadInput::taps, false);
    call.run(refusion::SpreadPass::values, threads, isa);
}

void spread_tangent(nb::list x, nb::list taps, nb::list x_tangents, nb::list taps_tangents, nb::handle y, int threads, const std::string& isa) {
    using refusion::SpreadInput;
    SpreadCall call(y, true);
    call.take_features(x, &SpreadInput::x, false);
    call.take_taps(taps, &SpreadInput::taps, false);
    call.take_features(x_tangents, &SpreadInput::x_tangent, false);
    call.take_taps(taps_tangents, &SpreadInput::taps_tangent, false);
    call.run(refusion::SpreadPass::tangents, threads, isa);
}

void spread_gradient(nb::list x, nb::list taps, nb::handle y_gradient, nb::list x_gradients, nb::list taps_gradients, int threads,
                     const std::string& isa) {
    using refusion::SpreadInput;
    SpreadCall call(y_gradient, false);
    call.take_features(x, &SpreadInput::x, false);
    call.take_taps(taps, &SpreadInput::taps, false);
    call.take_features(x_gradients, &SpreadInput::x_gradient, true);
    call.take_taps(taps_gradients, &SpreadInput::taps_gradient, true);
    call.run(refusion::SpreadPass::gradients, threads, isa);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Fused kernels of the fusion network for the CPU; see refusion_edge.backends.native.";
    nb::class_<Network>(m, "Network")
        .def("__init__",
             [](Network* self, nb::handle flat_object, int threads, const std::string& isa, const std::string& precision) {
                 const Array flat(flat_object, 'f', 1, false);
                 new (self) Network(require_parameters(flat), threads, isa, refusion::find_precision(precision));
             },
             nb::arg("parameters"), nb::arg("threads"), nb::arg("isa") = "", nb::arg("precision") = "fp32")
        .def("fuse", &fuse, nb::arg("a"), nb::arg("b"), nb::arg("fused"))
        .def_prop_ro("isa", &Network::isa)
        .def_prop_ro("threads", &Network::threads);
    m.def("fuse_reference", &fuse_reference, nb::arg("parameters"), nb::arg("a"), nb::arg("b"), nb::arg("fused"));
    m.def("isas", [](const std::string& precision) {
        std::vector<std::string> names;
        for (const refusion::Kernels* kernels : refusion::usable_kernels(refusion::find_precision(precision))) names.emplace_back(kernels->isa);
        return names;
    }, nb::arg("precision") = "fp32");
    m.def("parameters", [] {
        nb::list rows;
        for (const refusion::Parameter& row : refusion::parameters()) rows.append(nb::make_tuple(row.name, nb::tuple(nb::cast(row.shape))));
        return rows;
    });
    m.def("spread", &spread, nb::arg("x"), nb::arg("taps"), nb::arg("y"), nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("spread_tangent", &spread_tangent, nb::arg("x"), nb::arg("taps"), nb::arg("x_tangents"), nb::arg("taps_tangents"), nb::arg("y"),
          nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("spread_gradient", &spread_gradient, nb::arg("x"), nb::arg("taps"), nb::arg("y_gradient"), nb::arg("x_gradients"),
          nb::arg("taps_gradients"), nb::arg("threads") = 1, nb::arg("isa") = "");
    m.def("multiply_adds", [](const std::string& isa, long rounds) {
        const nb::gil_scoped_release released;
        return refusion::find_kernels(isa, refusion::Precision::fp32).multiply_adds(rounds);
    }, nb::arg("isa"), nb::arg("rounds"));
}
