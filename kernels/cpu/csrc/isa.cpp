#include "isa.hpp"

#include <algorithm>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace refusion {

namespace {

#if defined(__x86_64__)
// The builtin also asks whether the system saves the registers.
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

const char* name_of(Precision precision) {
    return precision == Precision::fp32 ? "fp32" : precision == Precision::bf16 ? "bf16" : "fp16";
}

// The first of this name; the first of all if it is empty.
template <class Kernels>
const Kernels& find(const std::vector<const Kernels*>& usable, const std::string& isa, Precision precision, const char* network) {
    const std::string word = name_of(precision);
    if (usable.empty()) throw std::invalid_argument("this processor cannot compute the network " + std::string(network) + " in " + word + "; compute in fp32");
    std::string names;
    for (const Kernels* kernels : usable) {
        if (isa.empty() || isa == kernels->isa) return *kernels;
        names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
    }
    throw std::invalid_argument("this processor cannot compute in " + word + " with the instruction set '" + isa + "'; choose one of " + names);
}

// What one instruction set has for each network. Only some sets compute in reduced precision, and of those, one only `fast`.
struct Set {
    const Kernels* kernels;
    const FastKernels* fast;
};

// Usable here, the fastest of each precision first.
std::vector<Set> usable_sets() {
    std::vector<Set> usable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512()) {
#if defined(REFUSION_HAS_BF16)
        if (__builtin_cpu_supports("avx512bf16")) usable.push_back({&avx512_bf16_kernels(), &avx512_bf16_fast_kernels()});
#endif
        usable.push_back({&avx512_kernels(), &avx512_fast_kernels()});
    }
    if (has_avx2()) usable.push_back({&avx2_kernels(), &avx2_fast_kernels()});
    usable.push_back({&sse2_kernels(), &sse2_fast_kernels()});
#elif defined(__aarch64__)
#if defined(REFUSION_HAS_BF16) && defined(__linux__)
    if (getauxval(AT_HWCAP2) & HWCAP2_BF16) usable.push_back({&neon_bf16_kernels(), &neon_bf16_fast_kernels()});
#endif
#if defined(REFUSION_HAS_FP16) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDHP) usable.push_back({nullptr, &neon_fp16_fast_kernels()});
#endif
    usable.push_back({&neon_kernels(), &neon_fast_kernels()});
#endif
    usable.push_back({&scalar_kernels(), &scalar_fast_kernels()});
    return usable;
}

}  // namespace

std::vector<const Kernels*> usable_kernels(Precision precision) {
    std::vector<const Kernels*> usable;
    for (const Set& set : usable_sets()) {
        if (set.kernels && set.kernels->packing.precision == precision) usable.push_back(set.kernels);
    }
    return usable;
}

std::vector<const FastKernels*> usable_fast_kernels(Precision precision) {
    std::vector<const FastKernels*> usable;
    for (const Set& set : usable_sets()) {
        if (set.fast->precision == precision) usable.push_back(set.fast);
    }
    return usable;
}

const Kernels& find_kernels(const std::string& isa, Precision precision) { return find(usable_kernels(precision), isa, precision, "refusion"); }

const FastKernels& find_fast_kernels(const std::string& isa, Precision precision) {
    return find(usable_fast_kernels(precision), isa, precision, "fast");
}

const Kernels& kernels_that_fill(const std::string& isa, const std::vector<int>& channels) {
    const Kernels& widest = find_kernels(isa, Precision::fp32);
    for (const Kernels* kernels : usable_kernels(Precision::fp32)) {
        const bool filled = std::all_of(channels.begin(), channels.end(), [&](int count) { return count % kernels->lanes == 0; });
        if (filled && kernels->lanes <= widest.lanes) return *kernels;
    }
    return scalar_kernels();
}

Precision find_precision(const std::string& word) {
    if (word == "fp32") return Precision::fp32;
    if (word == "bf16") return Precision::bf16;
    if (word == "fp16") return Precision::fp16;
    throw std::invalid_argument("unknown precision '" + word + "'; choose fp32, bf16 or fp16");
}

}  // namespace refusion
