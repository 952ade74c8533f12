// Formulas in double precision, as what they add up.
#pragma once

#include <cstddef>
#include <vector>

namespace exact {

using Exact = std::vector<double>;

// Adds up a bilinear map: products(visit) calls visit(number of y, number of a, number of b) for all that it consists of.
template <class Products>
void add_products(const Products& products, const Exact& a, const Exact& b, Exact& y) {
    products([&](std::size_t to, std::size_t i, std::size_t k) { y[to] += a[i] * b[k]; });
}

// Adds its gradients by a and b.
template <class Products>
void add_gradients(const Products& products, const Exact& a, const Exact& b, const Exact& slopes, Exact& by_a, Exact& by_b) {
    products([&](std::size_t to, std::size_t i, std::size_t k) {
        by_a[i] += slopes[to] * b[k];
        by_b[k] += slopes[to] * a[i];
    });
}

// y, pixels x outputs, of a, pixels x inputs, and b, outputs x inputs.
struct Pointwise {
    std::size_t pixels, inputs, outputs;

    template <class Visit>
    void operator()(const Visit& visit) const {
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
            for (std::size_t output = 0; output < outputs; ++output) {
                for (std::size_t input = 0; input < inputs; ++input) {
                    visit(pixel * outputs + output, pixel * inputs + input, output * inputs + input);
                }
            }
        }
    }
};

}  // namespace exact
