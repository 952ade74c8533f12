// The loop over the instructions of a warp.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "arithmetic.hpp"
#include "clones.hpp"
#include "machine.hpp"

namespace emulator {

// Whether registers are defined goes along with their values, lane by lane and half by half. It is reported where a value decides:
// as an address, as a guard, where it is stored to global memory. What a compiler leaves open and never uses is no fault.
void Machine::propagate(Warp& warp, const Instruction& i, std::uint32_t mask, int pc) {
    const auto known = [&](int k) -> Known& { return warp.known[i.c[k] & kFile][static_cast<std::size_t>(i.o[k])]; };
    const auto both = [&](int k) { return known(k).low & known(k).high; };
    const auto set = [&](int k, std::uint32_t low, std::uint32_t high) {
        Known& one = known(k);
        one.low = (one.low & ~mask) | (low & mask);
        one.high = (one.high & ~mask) | (high & mask);
    };
    if (kernel_.has_wgmma && i.op != Op::wgmma) {
        for (int k = 0; k < i.operands; ++k) {
            if ((i.c[k] & kFile) != kWords) continue;
            const auto reg = static_cast<std::size_t>(i.o[k]);
            // What a product reads may be read, but not written; what it writes may not be touched.
            if ((warp.accumulating[reg] & 1) || (warp.accumulating[reg] && (i.c[k] & kWritten))) {
                report(Kind::wgmma_register, pc, 32 * warp.index, i.o[k]);
            }
            if (i.c[k] & kWritten) warp.unfenced[reg] = 1;
        }
    }
    switch (i.op) {
        // These know more than their operands, and see to it themselves.
        case Op::ld_param: case Op::ld_global: case Op::st_global: case Op::ld_shared: case Op::st_shared: case Op::ldmatrix:
        case Op::ldmatrix_trans: case Op::stmatrix: case Op::shfl_bfly: case Op::shfl_idx: case Op::mma_m16n8k16: case Op::wgmma:
            return;
        case Op::mov_b32: case Op::mov_b64: case Op::neg_f32: case Op::abs_f32: set(0, known(1).low, known(1).high); return;
        case Op::pack_b32: case Op::pack_b64: set(0, both(1), both(2)); return;
        case Op::cvt_rn_f16x2_f32: set(0, both(2), both(1)); return;
        case Op::unpack_b32: case Op::unpack_b64: {
            const Known source = known(2);
            set(0, source.low, source.low);
            set(1, source.high, source.high);
            return;
        }
        case Op::selp_b32: case Op::selp_b16: {
            const std::uint32_t p = warp.predicates[static_cast<std::size_t>(i.o[3])], sure = known(3).low;
            const auto pick = [&](std::uint32_t a, std::uint32_t b) { return ((p & a) | (~p & b)) & sure; };
            set(0, pick(known(1).low, known(2).low), pick(known(1).high, known(2).high));
            return;
        }
        case Op::and_pred: {
            // What is known to be false decides alone.
            const std::uint32_t x = known(1).low & ~warp.predicates[static_cast<std::size_t>(i.o[1])];
            const std::uint32_t y = known(2).low & ~warp.predicates[static_cast<std::size_t>(i.o[2])];
            const std::uint32_t lanes = (known(1).low & known(2).low) | x | y;
            set(0, lanes, lanes);
            return;
        }
        case Op::add_f32x2: case Op::sub_f32x2: case Op::mul_f32x2: case Op::fma_rn_f32x2: {
            Known all{kAll, kAll};
            for (int k = 1; k < i.operands; ++k) all.low &= known(k).low, all.high &= known(k).high;
            set(0, all.low, all.high);
            return;
        }
        default: {
            std::uint32_t lanes = kAll;
            for (int k = 0; k < i.operands; ++k) {
                if (!(i.c[k] & kWritten)) lanes &= both(k);
            }
            for (int k = 0; k < i.operands; ++k) {
                if (i.c[k] & kWritten) set(k, lanes, lanes);
            }
        }
    }
}

namespace {

// Results in all lanes of a mask; the loop without a mask is what compilers make vectors of.
template <class T, class F>
__attribute__((always_inline)) inline void set_lanes(T* target, std::uint32_t mask, F value) {
    if (mask == kAll) {
        T all[32];
        for (int lane = 0; lane < 32; ++lane) all[lane] = static_cast<T>(value(lane));
        for (int lane = 0; lane < 32; ++lane) target[lane] = all[lane];
    } else {
        for (int lane = 0; lane < 32; ++lane) {
            if (mask >> lane & 1) target[lane] = static_cast<T>(value(lane));
        }
    }
}

template <class F>
__attribute__((always_inline)) inline void set_predicate(std::uint32_t& target, std::uint32_t mask, F value) {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= static_cast<std::uint32_t>(value(lane)) << lane;
    target = (target & ~mask) | (bits & mask);
}

template <class F>
__attribute__((always_inline)) inline std::uint64_t each_float(F value) {
    return canonical(value(0)) | static_cast<std::uint64_t>(canonical(value(32))) << 32;
}

}  // namespace

// Operands of the instruction at hand, in one lane: A, B and C are the sources, W words, L longs, F floats, S signed.
#define LANE(file, k) (warp.file[static_cast<std::size_t>(o[k])].v[lane])
#define AW LANE(words, 1)
#define BW LANE(words, 2)
#define CW LANE(words, 3)
#define AL LANE(longs, 1)
#define BL LANE(longs, 2)
#define CL LANE(longs, 3)
#define AS static_cast<std::int32_t>(AW)
#define BS static_cast<std::int32_t>(BW)
#define AF as_float(AW)
#define BF as_float(BW)
#define CF as_float(CW)
#define PART(value) as_float(static_cast<std::uint32_t>((value) >> shift))
#define WORD(value) set_lanes(warp.words[static_cast<std::size_t>(o[0])].v, mask, [&](int lane) { return value; }); break
#define HALF(value) WORD((value) & 0xffffu)
#define FLOAT(value) WORD(canonical(value))
#define LONG(value) set_lanes(warp.longs[static_cast<std::size_t>(o[0])].v, mask, [&](int lane) { return value; }); break
#define PAIR(value) LONG(each_float([&](int shift) { return value; }))
#define TEST(value) set_predicate(warp.predicates[static_cast<std::size_t>(o[0])], mask, [&](int lane) { return value; }); break

EMULATOR_CLONES void Machine::execute(Warp& warp) {
    while (true) {
        if (++executed_ > launch_.budget) {
            report(Kind::budget, static_cast<int>(warp.place), 32 * warp.index);
            stopped_ = true;
            return;
        }
        const auto place = warp.place;
        const int pc = static_cast<int>(place);
        const Instruction& i = kernel_.code[place];
        const std::int32_t* o = i.o;
        std::uint32_t active = warp.alive;
        if (warp.diverged) {
            active = 0;
            for (int lane = 0; lane < 32; ++lane) {
                if ((warp.alive >> lane & 1) && warp.places[lane] == place) active |= 1u << lane;
            }
        }
        std::uint32_t mask = active;
        if (i.guard >= 0) {
            const auto guard = static_cast<std::size_t>(i.guard);
            const std::uint32_t p = warp.predicates[guard];
            if (const std::uint32_t missing = active & ~warp.known[kPredicates][guard].low; launch_.check && missing) {
                report(Kind::undefined_guard, pc, 32 * warp.index + __builtin_ctz(missing), i.guard);
            }
            mask &= i.guard_not ? ~p : p;
        }
        counts_[pc].warps += 1;
        counts_[pc].lanes += static_cast<std::uint64_t>(__builtin_popcount(mask));
        if (launch_.check && i.operands) propagate(warp, i, mask, pc);
        const auto collective = [&] {
            if (!whole(mask, warp.index)) report(Kind::collective, pc, 32 * warp.index, 0, mask);
        };
        const std::uint32_t next = place + 1;
        switch (i.op) {
            case Op::add_s32: WORD(AW + BW);
            case Op::sub_s32: WORD(AW - BW);
            case Op::mul_lo_s32: WORD(AW * BW);
            case Op::mad_lo_s32: WORD(AW * BW + CW);
            case Op::and_b32: WORD(AW & BW);
            case Op::or_b32: WORD(AW | BW);
            case Op::xor_b32: WORD(AW ^ BW);
            case Op::shl_b32: WORD(shift_left(AW, BW));
            case Op::shr_u32: WORD(shift_right(AW, BW));
            case Op::bfe_u32: WORD(bit_field(AW, BW, CW, false));
            case Op::bfe_s32: WORD(bit_field(AW, BW, CW, true));
            case Op::neg_s32: WORD(0u - AW);
            case Op::min_s32: WORD(static_cast<std::uint32_t>(std::min(AS, BS)));
            case Op::prmt_b32: WORD(permuted(AW, BW, CW));
            case Op::selp_b32: case Op::selp_b16: {
                const std::uint32_t p = warp.predicates[static_cast<std::size_t>(o[3])];
                WORD((p >> lane & 1) ? AW : BW);
            }
            case Op::mov_b32: case Op::mov_b16: WORD(AW);
            case Op::pack_b32: WORD((AW & 0xffff) | BW << 16);
            case Op::unpack_b32: {
                const Words source = warp.words[static_cast<std::size_t>(o[2])];
                set_lanes(warp.words[static_cast<std::size_t>(o[0])].v, mask, [&](int lane) { return source.v[lane] & 0xffff; });
                set_lanes(warp.words[static_cast<std::size_t>(o[1])].v, mask, [&](int lane) { return source.v[lane] >> 16; });
                break;
            }
            case Op::add_s64: LONG(AL + BL);
            case Op::mul_lo_s64: LONG(AL * BL);
            case Op::mad_lo_s64: LONG(AL * BL + CL);
            case Op::and_b64: LONG(AL & BL);
            case Op::or_b64: LONG(AL | BL);
            case Op::shl_b64: LONG(shift_left(AL, BW));
            case Op::mov_b64: LONG(AL);
            case Op::pack_b64: LONG(AW | static_cast<std::uint64_t>(BW) << 32);
            case Op::unpack_b64: {
                const Longs source = warp.longs[static_cast<std::size_t>(o[2])];
                set_lanes(warp.words[static_cast<std::size_t>(o[0])].v, mask, [&](int lane) { return source.v[lane]; });
                set_lanes(warp.words[static_cast<std::size_t>(o[1])].v, mask, [&](int lane) { return source.v[lane] >> 32; });
                break;
            }
            case Op::mul_wide_s32: LONG(static_cast<std::uint64_t>(static_cast<std::int64_t>(AS) * BS));
            case Op::mul_wide_u32: LONG(static_cast<std::uint64_t>(AW) * BW);
            case Op::mad_wide_s32: LONG(static_cast<std::uint64_t>(static_cast<std::int64_t>(AS) * BS) + CL);
            case Op::mad_wide_u32: LONG(static_cast<std::uint64_t>(AW) * BW + CL);
            case Op::cvt_s64_s32: LONG(static_cast<std::uint64_t>(static_cast<std::int64_t>(AS)));
            case Op::cvt_u64_u32: LONG(static_cast<std::uint64_t>(AW));
            case Op::cvt_u32_u64: WORD(static_cast<std::uint32_t>(AL));
            case Op::cvt_u16_u32: HALF(AW);
            case Op::cvt_u32_u16: HALF(AW);
            case Op::and_b16: WORD(AW & BW);
            case Op::or_b16: WORD(AW | BW);
            case Op::shl_b16: HALF(shift_left(AW, BW));
            case Op::shr_u16: WORD(shift_right(AW, BW));
            case Op::cvt_f32_f16: FLOAT(from_half(AW));
            case Op::cvt_rn_f16_f32: WORD(to_half(AF));
            case Op::cvt_rn_f16x2_f32: WORD(static_cast<std::uint32_t>(to_half(AF)) << 16 | to_half(BF));
            case Op::cvt_rmi_ftz_f32_f32: FLOAT(std::floor(flushed(AF)));
            case Op::cvt_rzi_u16_f32: WORD(to_uint16(AF));
            case Op::cvt_rn_f32_u32: FLOAT(static_cast<float>(AW));
            case Op::add_f32: FLOAT(AF + BF);
            case Op::sub_f32: FLOAT(AF - BF);
            case Op::mul_f32: FLOAT(AF * BF);
            case Op::fma_rn_f32: FLOAT(__builtin_fmaf(AF, BF, CF));
            case Op::neg_f32: FLOAT(-AF);
            case Op::abs_f32: FLOAT(std::fabs(AF));
            case Op::min_f32: FLOAT(least(AF, BF));
            case Op::max_f32: FLOAT(most(AF, BF));
            case Op::min3_f32: FLOAT(least(least(AF, BF), CF));
            case Op::max3_f32: FLOAT(most(most(AF, BF), CF));
            case Op::max_NaN_f32: FLOAT(most_or_nan(AF, BF));
            case Op::sub_rn_f32_f16: FLOAT(from_half(AW) - BF);
            case Op::rsqrt_approx_ftz_f32: FLOAT(flushed(static_cast<float>(1.0 / std::sqrt(static_cast<double>(flushed(AF))))));
            case Op::sqrt_approx_ftz_f32: FLOAT(flushed(std::sqrt(flushed(AF))));
            case Op::ex2_approx_f32: FLOAT(static_cast<float>(std::exp2(static_cast<double>(AF))));
            case Op::div_full_f32: FLOAT(AF / BF);
            case Op::div_approx_f32: FLOAT(approximate_quotient(AF, BF));
            case Op::add_f32x2: PAIR(PART(AL) + PART(BL));
            case Op::sub_f32x2: PAIR(PART(AL) - PART(BL));
            case Op::mul_f32x2: PAIR(PART(AL) * PART(BL));
            case Op::fma_rn_f32x2: PAIR(__builtin_fmaf(PART(AL), PART(BL), PART(CL)));
            case Op::setp_eq_b32: TEST(AW == BW);
            case Op::setp_ne_b32: TEST(AW != BW);
            case Op::setp_lt_s32: TEST(AS < BS);
            case Op::setp_le_s32: TEST(AS <= BS);
            case Op::setp_gt_s32: TEST(AS > BS);
            case Op::setp_lt_u32: TEST(AW < BW);
            case Op::setp_gt_u32: TEST(AW > BW);
            case Op::setp_ne_b64: TEST(AL != BL);
            case Op::setp_lt_s64: TEST(static_cast<std::int64_t>(AL) < static_cast<std::int64_t>(BL));
            case Op::setp_le_s64: TEST(static_cast<std::int64_t>(AL) <= static_cast<std::int64_t>(BL));
            case Op::setp_gt_s64: TEST(static_cast<std::int64_t>(AL) > static_cast<std::int64_t>(BL));
            case Op::setp_lt_f32: TEST(AF < BF);
            case Op::setp_gt_f32: TEST(AF > BF);
            case Op::setp_ge_f32: TEST(AF >= BF);
            case Op::and_pred: case Op::mov_pred: {
                const std::uint32_t a = warp.predicates[static_cast<std::size_t>(o[1])];
                const std::uint32_t bits = i.op == Op::and_pred ? a & warp.predicates[static_cast<std::size_t>(o[2])] : a;
                std::uint32_t& target = warp.predicates[static_cast<std::size_t>(o[0])];
                target = (target & ~mask) | (bits & mask);
                break;
            }
            case Op::ld_param: load_parameter(warp, i, mask, pc); break;
            case Op::ld_global: access_global(warp, i, mask, false, pc); break;
            case Op::st_global: access_global(warp, i, mask, true, pc); break;
            case Op::ld_shared: access_shared(warp, i, mask, false, pc); break;
            case Op::st_shared: access_shared(warp, i, mask, true, pc); break;
            case Op::ldmatrix: case Op::ldmatrix_trans: case Op::stmatrix:
                collective();
                move_matrices(warp, i, i.op == Op::stmatrix, i.op == Op::ldmatrix_trans, pc);
                break;
            case Op::shfl_bfly: case Op::shfl_idx:
                collective();
                shuffle(warp, i, mask);
                break;
            case Op::mma_m16n8k16:
                collective();
                multiply_fragments(warp, i);
                break;
            case Op::wgmma:
                collective();
                start_product(warp, i, pc);
                break;
            case Op::wgmma_fence:
                collective();
                std::fill(warp.unfenced.begin(), warp.unfenced.end(), std::uint8_t{0});
                warp.fenced = true;
                break;
            case Op::wgmma_commit:
                collective();
                if (!warp.pending.empty()) warp.pending.back().committed = true;
                break;
            case Op::wgmma_wait:
                collective();
                wait_for_products(warp, i.count);
                break;
            case Op::fence_proxy_async:
                for (int lane = 0; lane < 32; ++lane) {
                    const auto thread = static_cast<std::size_t>(32 * warp.index + lane);
                    if (mask >> lane & 1) ++fences_[thread], fence_epochs_[thread] = epoch_;
                }
                break;
            case Op::bar_warp_sync:
                collective();
                ++warp.epoch;
                break;
            case Op::bar_sync:
                if (warp.diverged || !whole(mask, warp.index)) report(Kind::barrier, pc, 32 * warp.index, 0, mask);
                for (const Warp& other : warps_) {
                    if (other.waiting && barrier_pc_ != pc) report(Kind::barrier, pc, 32 * warp.index, barrier_pc_, 0);
                }
                barrier_pc_ = pc;
                warp.waiting = true;
                warp.place = next;
                for (int lane = 0; lane < 32; ++lane) {
                    if (active >> lane & 1) warp.places[lane] = next;
                }
                return;
            case Op::ret:
                warp.alive &= ~mask;
                if (!warp.alive) {
                    finish(warp);
                    return;
                }
                break;
            case Op::bra: break;
        }
        // Where the lanes go.
        const std::uint32_t jumps = i.op == Op::bra ? mask : 0, target = jumps ? static_cast<std::uint32_t>(i.target) : next;
        if (!warp.diverged && (jumps == 0 || jumps == active)) {
            warp.place = target;
            continue;
        }
        for (int lane = 0; lane < 32; ++lane) {
            if (active >> lane & 1) warp.places[lane] = (jumps >> lane & 1) ? target : next;
        }
        std::uint32_t lowest = kAll, highest = 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (!(warp.alive >> lane & 1)) continue;
            lowest = std::min(lowest, warp.places[lane]);
            highest = std::max(highest, warp.places[lane]);
        }
        warp.place = lowest;
        warp.diverged = lowest != highest;
    }
}

}  // namespace emulator
