#include "isa.hpp"

#include <stdexcept>

namespace refusion {

std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> usable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    // The builtin also asks whether the system saves the registers.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        usable.push_back(&avx512_kernels());
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable.push_back(&avx2_kernels());
    usable.push_back(&sse2_kernels());
#elif defined(__aarch64__)
    usable.push_back(&neon_kernels());
#endif
    usable.push_back(&scalar_kernels());
    return usable;
}

const Kernels& find_kernels(const std::string& isa) {
    std::string names;
    for (const Kernels* kernels : usable_kernels()) {
        if (isa == kernels->isa) return *kernels;
        names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
    }
    throw std::invalid_argument("expected an instruction set that this processor has (" + names + "), got '" + isa + "'; choose one of them.");
}

}  // namespace refusion
