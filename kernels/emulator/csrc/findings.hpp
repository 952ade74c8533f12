// What the checker reports: each kind once for each instruction, with a count.
#pragma once

#include <cstdint>
#include <vector>

namespace emulator {

// The names are those of kernels/emulator/findings.py.
#define EMULATOR_FINDINGS(X) \
    X(global_bounds) X(global_alignment) X(global_read_only) X(shared_bounds) X(shared_alignment) X(parameter_bounds) \
    X(undefined_address) X(undefined_guard) X(undefined_store) X(undefined_descriptor) \
    X(shared_read_after_write) X(shared_write_after_read) X(shared_write_after_write) X(shared_within_warp) \
    X(global_between_ctas) X(global_within_cta) X(barrier) X(collective) X(proxy_fence) \
    X(wgmma_register) X(wgmma_fence) X(wgmma_descriptor) X(wgmma_overwritten) X(wgmma_unfinished) X(budget) X(same_value)

enum class Kind : std::int32_t {
#define EMULATOR_NAME(name) name,
    EMULATOR_FINDINGS(EMULATOR_NAME)
#undef EMULATOR_NAME
};

inline constexpr const char* kKindNames[] = {
#define EMULATOR_NAME(name) #name,
    EMULATOR_FINDINGS(EMULATOR_NAME)
#undef EMULATOR_NAME
};

struct Finding {
    Kind kind;
    std::int32_t pc, cta, thread, other;  // other: the second thread of a race, else what the kind says
    std::uint64_t address, count;
};

class Findings {
  public:
    void add(Kind kind, int pc, int cta, int thread, int other, std::uint64_t address) {
        for (Finding& known : list) {
            if (known.kind == kind && known.pc == pc) {
                ++known.count;
                return;
            }
        }
        list.push_back({kind, pc, cta, thread, other, address, 1});
    }

    std::vector<Finding> list;
};

}  // namespace emulator
