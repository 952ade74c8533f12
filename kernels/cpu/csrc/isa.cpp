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
template <class Set>
const Set& find(const std::vector<const Set*>& usable, const std::string& isa, Precision precision, const char* network) {
    const std::string word = name_of(precision);
    if (usable.empty()) throw std::invalid_argument("this processor cannot compute the network " + std::string(network) + " in " + word + "; compute in fp32");
    std::string names;
    for (const Set* kernels : usable) {
        if (isa.empty() || isa == kernels->isa) return *kernels;
        names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
    }
    throw std::invalid_argument("this processor cannot compute in " + word + " with the instruction set '" + isa + "'; choose one of " + names);
}

}  // namespace

std::vector<const Kernels*> usable_kernels(Precision precision) {
    std::vector<const Kernels*> usable;
    const auto offer = [&](const Kernels& kernels) {
        if (kernels.packing.precision == precision) usable.push_back(&kernels);
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512()) {
#if defined(REFUSION_HAS_BF16)
        if (__builtin_cpu_supports("avx512bf16")) offer(avx512_bf16_kernels());
#endif
        offer(avx512_kernels());
    }
    if (has_avx2()) offer(avx2_kernels());
    offer(sse2_kernels());
#elif defined(__aarch64__)
#if defined(REFUSION_HAS_BF16) && defined(__linux__)
    if (getauxval(AT_HWCAP2) & HWCAP2_BF16) offer(neon_bf16_kernels());
#endif
    offer(neon_kernels());
#endif
    offer(scalar_kernels());
    return usable;
}

std::vector<const FastKernels*> usable_fast_kernels(Precision precision) {
    std::vector<const FastKernels*> usable;
    const auto offer = [&](const FastKernels& kernels) {
        if (kernels.precision == precision) usable.push_back(&kernels);
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512()) offer(avx512_fast_kernels());
    if (has_avx2()) offer(avx2_fast_kernels());
    offer(sse2_fast_kernels());
#elif defined(__aarch64__)
#if defined(REFUSION_HAS_FP16) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDHP) offer(neon_fp16_fast_kernels());
#endif
    offer(neon_fast_kernels());
#endif
    offer(scalar_fast_kernels());
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
