// How close the results of kernels must be to the formula, in every instruction set and on any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <future>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "blocks.hpp"
#include "exact.hpp"
#include "isa.hpp"
#include "require.hpp"

// Arrays that kernels write: work(threads, instruction set, seed of how memory is laid out).
using Work = std::function<std::vector<blocks::Numbers>(int, const std::string&, unsigned)>;

class Closeness {
  public:
    // Of the largest number of an array, which counts as 1 at least.
    explicit Closeness(double tolerance) : tolerance_(tolerance) {}

    // Works with every instruction set, on one thread, and on several by two callers at once.
    void check(const Work& work, const std::vector<exact::Exact>& expected, const std::string& name, std::mt19937& random) {
        std::uniform_int_distribution<int> several(2, 5);
        for (const refusion::Kernels* kernels : refusion::usable_kernels(refusion::Precision::fp32)) {
            const std::string isa = kernels->isa, what = name + " with " + isa;
            const auto run = [&](int threads, unsigned seed) {
                try {
                    return work(threads, isa, seed);
                } catch (const std::exception& error) {
                    throw std::runtime_error(what + ": " + error.what());
                }
            };
            const std::vector<blocks::Numbers> alone = run(1, static_cast<unsigned>(random()));
            require(alone.size() == expected.size(), what + ": another number of arrays");
            for (std::size_t n = 0; n < alone.size(); ++n) require_close(alone[n], expected[n], what + ", array " + std::to_string(n));
            auto other = std::async(std::launch::async, run, several(random), static_cast<unsigned>(random()));
            const std::vector<blocks::Numbers> here = run(several(random), static_cast<unsigned>(random())), there = other.get();
            for (std::size_t n = 0; n < alone.size(); ++n) {
                const bool same = blocks::same_bits(alone[n], here[n]) && blocks::same_bits(alone[n], there[n]);
                require(same, what + ", array " + std::to_string(n) + ": not what one thread makes of it");
            }
        }
    }

    // The largest error so far.
    double worst() const { return worst_; }

  private:
    void require_close(const blocks::Numbers& found, const exact::Exact& expected, const std::string& what) {
        require(found.size() == expected.size(), what + ": another number of results");
        double error = 0, largest = 1;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            const double own = std::abs(static_cast<double>(found[i]) - expected[i]);
            error = own <= error ? error : own;  // takes NaN, too
            largest = std::max(largest, std::abs(expected[i]));
        }
        require(error <= tolerance_ * largest, what + ": error " + std::to_string(error / largest * 1e6) + "e-6 of the largest");
        worst_ = std::max(worst_, error / largest);
    }

    double tolerance_, worst_ = 0;
};
