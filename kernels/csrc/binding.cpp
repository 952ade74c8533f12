// The Python module _native. Arrays come through the buffer protocol, which knows any strides; nothing is copied.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <climits>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.hpp"
#include "network.hpp"
#include "parameters.hpp"
#include "reference.hpp"

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
    m.def("multiply_adds", [](const std::string& isa, long rounds) {
        const nb::gil_scoped_release released;
        return refusion::find_kernels(isa, refusion::Precision::fp32).multiply_adds(rounds);
    }, nb::arg("isa"), nb::arg("rounds"));
}
