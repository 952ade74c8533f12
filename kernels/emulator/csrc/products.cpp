#include "products.hpp"

#include "clones.hpp"
#include "half.hpp"

namespace emulator {

const HalfTable kHalves;

namespace {

template <int kColumns>
__attribute__((always_inline)) inline void multiply_columns(const float* a, const double* b, float* c, int stride) {
    for (int row = 0; row < 16; ++row) {
        double sums[kColumns];
        for (int n = 0; n < kColumns; ++n) sums[n] = c[row * stride + n];
        for (int k = 0; k < 16; ++k) {
            const double factor = a[row * 16 + k];
            for (int n = 0; n < kColumns; ++n) sums[n] += factor * b[k * stride + n];
        }
        for (int n = 0; n < kColumns; ++n) c[row * stride + n] = static_cast<float>(sums[n]);
    }
}

}  // namespace

EMULATOR_CLONES void multiply(const float* a, const double* b, float* c, int n) {
    for (int first = 0; first < n; first += 8) multiply_columns<8>(a, b + first, c + first, n);
}

}  // namespace emulator
