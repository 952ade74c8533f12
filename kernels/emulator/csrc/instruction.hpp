// A decoded kernel: what the decoder in Python hands over.
#pragma once

#include <cstdint>
#include <vector>

namespace emulator {

// Every operation, by the name that kernels/emulator/instructions.py uses.
#define EMULATOR_OPERATIONS(X) \
    X(add_s32) X(sub_s32) X(mul_lo_s32) X(mad_lo_s32) X(and_b32) X(or_b32) X(xor_b32) X(shl_b32) X(shr_u32) X(bfe_u32) X(bfe_s32) \
    X(neg_s32) X(min_s32) X(prmt_b32) X(selp_b32) X(mov_b32) X(pack_b32) X(unpack_b32) \
    X(add_s64) X(mul_lo_s64) X(mad_lo_s64) X(and_b64) X(or_b64) X(shl_b64) X(mov_b64) X(pack_b64) X(unpack_b64) \
    X(mul_wide_s32) X(mul_wide_u32) X(mad_wide_s32) X(mad_wide_u32) X(cvt_s64_s32) X(cvt_u64_u32) X(cvt_u32_u64) X(cvt_u16_u32) X(cvt_u32_u16) \
    X(and_b16) X(or_b16) X(shl_b16) X(shr_u16) X(selp_b16) X(mov_b16) \
    X(cvt_f32_f16) X(cvt_rn_f16_f32) X(cvt_rn_f16x2_f32) X(cvt_rmi_ftz_f32_f32) X(cvt_rzi_u16_f32) X(cvt_rn_f32_u32) \
    X(add_f32) X(sub_f32) X(mul_f32) X(fma_rn_f32) X(neg_f32) X(abs_f32) X(min_f32) X(max_f32) X(min3_f32) X(max3_f32) X(max_NaN_f32) \
    X(sub_rn_f32_f16) X(rsqrt_approx_ftz_f32) X(sqrt_approx_ftz_f32) X(ex2_approx_f32) X(div_full_f32) X(div_approx_f32) \
    X(add_f32x2) X(sub_f32x2) X(mul_f32x2) X(fma_rn_f32x2) \
    X(setp_eq_b32) X(setp_ne_b32) X(setp_lt_s32) X(setp_le_s32) X(setp_gt_s32) X(setp_lt_u32) X(setp_gt_u32) X(setp_ne_b64) X(setp_lt_s64) X(setp_le_s64) X(setp_gt_s64) \
    X(setp_lt_f32) X(setp_gt_f32) X(setp_ge_f32) X(and_pred) X(mov_pred) \
    X(ld_param) X(ld_global) X(st_global) X(ld_shared) X(st_shared) X(ldmatrix) X(ldmatrix_trans) X(stmatrix) \
    X(shfl_bfly) X(shfl_idx) X(mma_m16n8k16) X(wgmma) X(wgmma_fence) X(wgmma_commit) X(wgmma_wait) X(fence_proxy_async) \
    X(bar_sync) X(bar_warp_sync) X(bra) X(ret)

enum class Op : std::int32_t {
#define EMULATOR_NAME(name) name,
    EMULATOR_OPERATIONS(EMULATOR_NAME)
#undef EMULATOR_NAME
};

inline constexpr const char* kOperationNames[] = {
#define EMULATOR_NAME(name) #name,
    EMULATOR_OPERATIONS(EMULATOR_NAME)
#undef EMULATOR_NAME
};

// Which registers an operand names: the lower bits are the register file.
enum OperandBits : std::uint8_t { kWords = 0, kLongs = 1, kPredicates = 2, kFile = 3, kWritten = 4, kHalf = 8 };

struct Instruction {
    Op op;
    std::int32_t guard;      // predicate, or -1
    std::int32_t guard_not;  // whether it has to be false
    std::int32_t target;     // of a branch
    std::int32_t size;       // bytes of an element of a memory access; of ld.param.s32 into 64 bits, negative
    std::int32_t count;      // elements of a memory access, matrices, columns of wgmma, groups that wgmma.wait_group leaves
    std::int32_t kind;       // of wgmma: 1 A from shared memory, 2 A transposed, 4 B transposed
    std::int32_t operands;   // number of them
    std::int64_t offset;     // of a memory access
    const std::int32_t* o;   // registers
    const std::uint8_t* c;   // OperandBits of each
};

struct Constant {
    std::int32_t file, index;
    std::int32_t special;  // 0: the value. 1: tid.x. 2 to 4: ctaid. 5 to 7: nctaid. 8: ntid.x.
    std::uint64_t value;
};

struct Kernel {
    std::vector<Instruction> code;
    std::vector<std::int32_t> operands;
    std::vector<std::uint8_t> classes;
    std::vector<Constant> constants;
    std::int32_t registers[3] = {0, 0, 0};  // of each file, with constants
    std::int32_t shared_grain = 2;          // log2 of the bytes by which races in shared memory are told apart
    bool has_wgmma = false;
};

}  // namespace emulator
