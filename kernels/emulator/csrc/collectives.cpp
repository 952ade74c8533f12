// The instructions in which the lanes of a warp work together.
#include "machine.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "half.hpp"
#include "products.hpp"

namespace emulator {

namespace {

constexpr int kRows = 16, kDepth = 16;

// Halves of the four registers of A, and the rows in which all of them are defined.
std::uint32_t read_a(const Warp& warp, const std::int32_t* registers, float* a) {
    std::uint32_t rows = 0xffff;
    for (int q = 0; q < 4; ++q) {
        const Words& reg = warp.words[static_cast<std::size_t>(registers[q])];
        const Known& known = warp.known[kWords][static_cast<std::size_t>(registers[q])];
        for (int lane = 0; lane < 32; ++lane) {
            const Place place = place_in_a(q, lane);
            a[place.row * kDepth + place.column] = from_half(reg.v[lane]);
            a[place.row * kDepth + place.column + 1] = from_half(reg.v[lane] >> 16);
        }
        if ((known.low & known.high) == kAll) continue;
        for (int lane = 0; lane < 32; ++lane) {
            if (!((known.low & known.high) >> lane & 1)) rows &= ~(1u << place_in_a(q, lane).row);
        }
    }
    return rows;
}

void read_c(const Warp& warp, const std::int32_t* registers, int count, int columns, float* c) {
    for (int q = 0; q < count; ++q) {
        const Words& reg = warp.words[static_cast<std::size_t>(registers[q])];
        for (int lane = 0; lane < 32; ++lane) {
            const Place place = place_in_c(q, lane);
            c[place.row * columns + place.column] = as_float(reg.v[lane]);
        }
    }
}

void write_c(Warp& warp, const std::int32_t* registers, int count, int columns, const float* c) {
    for (int q = 0; q < count; ++q) {
        Words& reg = warp.words[static_cast<std::size_t>(registers[q])];
        for (int lane = 0; lane < 32; ++lane) {
            const Place place = place_in_c(q, lane);
            reg.v[lane] = canonical(c[place.row * columns + place.column]);
        }
    }
}

// Lanes of an accumulator whose row of A and column of B are defined.
std::uint32_t known_lanes(int q, std::uint32_t rows, const std::vector<std::uint8_t>& columns) {
    std::uint32_t lanes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        const Place place = place_in_c(q, lane);
        if ((rows >> place.row & 1) && columns[static_cast<std::size_t>(place.column)]) lanes |= 1u << lane;
    }
    return lanes;
}

// Halves of an operand of wgmma that lie side by side.
constexpr int kChunk = 8, kChunkBytes = 16;

template <class F>
void for_each_chunk(std::uint64_t descriptor, bool transposed, int first, int majors, F visit) {
    for (int major = first; major < first + majors; major += transposed ? kChunk : 1) {
        for (int k = 0; k < kDepth; k += transposed ? 1 : kChunk) visit(descriptor_address(descriptor, transposed, major, k), major, k);
    }
}

}  // namespace

void Machine::shuffle(Warp& warp, const Instruction& i, std::uint32_t mask) {
    const auto words = [&](int operand) -> const Words& { return warp.words[static_cast<std::size_t>(i.o[operand])]; };
    const Words source = words(1);
    const Known known = warp.known[kWords][static_cast<std::size_t>(i.o[1])];
    Words result;
    Known moved;
    for (std::uint32_t lane = 0; lane < 32; ++lane) {
        const std::uint32_t b = words(2).v[lane] & 31, clamp = words(3).v[lane] & 31, segment = words(3).v[lane] >> 8 & 31;
        const std::uint32_t last = (lane & segment) | (clamp & ~segment);
        const std::uint32_t wanted = i.op == Op::shfl_bfly ? lane ^ b : (lane & segment) | (b & ~segment);
        const std::uint32_t from = wanted <= last ? wanted : lane;
        result.v[lane] = source.v[from];
        moved.low |= (known.low >> from & 1) << lane;
        moved.high |= (known.high >> from & 1) << lane;
    }
    Words& target = warp.words[static_cast<std::size_t>(i.o[0])];
    Known& target_known = warp.known[kWords][static_cast<std::size_t>(i.o[0])];
    for (int lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) target.v[lane] = result.v[lane];
    }
    target_known.low = (target_known.low & ~mask) | (moved.low & mask);
    target_known.high = (target_known.high & ~mask) | (moved.high & mask);
}

void Machine::multiply_fragments(Warp& warp, const Instruction& i) {
    constexpr int kColumns = 8;
    alignas(64) float a[kRows * kDepth], c[kRows * kColumns];
    alignas(64) double b[kDepth * kColumns];
    const std::uint32_t rows = read_a(warp, i.o + 4, a);
    std::uint32_t b_known = kAll;
    for (int q = 0; q < 2; ++q) {
        const Words& reg = warp.words[static_cast<std::size_t>(i.o[8 + q])];
        for (int lane = 0; lane < 32; ++lane) {
            const Place place = place_in_b(q, lane);
            b[place.row * kColumns + place.column] = from_half(reg.v[lane]);
            b[(place.row + 1) * kColumns + place.column] = from_half(reg.v[lane] >> 16);
        }
        const Known& known = warp.known[kWords][static_cast<std::size_t>(i.o[8 + q])];
        b_known &= known.low & known.high;
    }
    read_c(warp, i.o + 10, 4, kColumns, c);
    Known accumulators[4];
    for (int q = 0; q < 4; ++q) accumulators[q] = warp.known[kWords][static_cast<std::size_t>(i.o[10 + q])];
    multiply(a, b, c, kColumns);
    write_c(warp, i.o, 4, kColumns, c);
    std::vector<std::uint8_t> columns;
    const bool all = rows == 0xffff && b_known == kAll;
    if (!all) {
        columns.assign(kColumns, 1);
        for (int lane = 0; lane < 32; ++lane) {
            if (!(b_known >> lane & 1)) columns[static_cast<std::size_t>(place_in_b(0, lane).column)] = 0;
        }
    }
    for (int q = 0; q < 4; ++q) {
        const std::uint32_t lanes = accumulators[q].low & accumulators[q].high & (all ? kAll : known_lanes(q, rows, columns));
        warp.known[kWords][static_cast<std::size_t>(i.o[q])] = {lanes, lanes};
    }
}

// o: n / 2 accumulators, A (four registers or a descriptor), B (a descriptor), whether the accumulators are added.
void Machine::start_product(Warp& warp, const Instruction& i, int pc) {
    const int accumulators = i.count / 2, thread = 32 * warp.index;
    const auto descriptor = [&](int operand) {
        const Longs& longs = warp.longs[static_cast<std::size_t>(i.o[operand])];
        const Known& known = warp.known[kLongs][static_cast<std::size_t>(i.o[operand])];
        if (launch_.check && (known.low & known.high) != kAll) report(Kind::undefined_descriptor, pc, thread, i.o[operand]);
        for (int lane = 1; lane < 32; ++lane) {
            if (longs.v[lane] != longs.v[0]) {
                report(Kind::wgmma_descriptor, pc, thread + lane, 0, longs.v[lane]);
                break;
            }
        }
        return longs.v[0];
    };
    const std::uint64_t a = i.kind & 1 ? descriptor(accumulators) : 0, b = descriptor(i.operands - 2);
    const Known& add = warp.known[kPredicates][static_cast<std::size_t>(i.o[i.operands - 1])];
    if (launch_.check && add.low != kAll) report(Kind::undefined_guard, pc, thread, i.o[i.operands - 1]);
    if (launch_.check) {
        const int used = accumulators + (i.kind & 1 ? 0 : 4);
        // The first one needs a fence in any case.
        if (!warp.fenced) report(Kind::wgmma_fence, pc, thread, i.o[0]);
        for (int q = 0; q < used; ++q) {
            const auto reg = static_cast<std::size_t>(i.o[q]);
            if (warp.unfenced[reg]) report(Kind::wgmma_fence, pc, thread, i.o[q]);
            if (q >= accumulators && warp.accumulating[reg]) report(Kind::wgmma_register, pc, thread, i.o[q]);
        }
        // Reads now, so that whoever writes there is seen; the values are taken at the end, so that it shows.
        const auto read = [&](std::uint64_t from, bool transposed, int first, int majors) {
            for_each_chunk(from, transposed, first, majors, [&](std::uint32_t address, int, int) {
                shared_bytes(warp, address, kChunkBytes, thread, nullptr, true, pc);
            });
        };
        if (i.kind & 1) read(a, i.kind & 2, kRows * (warp.index % 4), kRows);
        read(b, i.kind & 4, 0, i.count);
    }
    // The predicate is read now; only the accumulators and the memory of the operands belong to the product until it is done.
    const bool adds = warp.predicates[static_cast<std::size_t>(i.o[i.operands - 1])] & 1;
    warp.pending.push_back({pc, a, b, clock_, false, adds});
    for (int q = 0; q < accumulators; ++q) warp.accumulating[static_cast<std::size_t>(i.o[q])] = 1;
    if (!(i.kind & 1)) {
        for (int q = 0; q < 4; ++q) warp.accumulating[static_cast<std::size_t>(i.o[accumulators + q])] |= 2;
    }
}

void Machine::finish_product(Warp& warp, const PendingProduct& product) {
    const Instruction& i = kernel_.code[static_cast<std::size_t>(product.pc)];
    const int n = i.count, accumulators = n / 2;
    alignas(64) float a[kRows * kDepth];
    std::uint32_t rows = 0xffff;
    // Element (major, k) of an operand goes to `put`; `defined` is cleared for each major with an undefined one.
    const auto fetch = [&](std::uint64_t descriptor, bool transposed, int first, int majors, std::uint8_t* defined, auto put) {
        for_each_chunk(descriptor, transposed, first, majors, [&](std::uint32_t address, int major, int k) {
            const std::uint32_t offset = address - launch_.shared_base;
            const bool inside = offset <= launch_.shared_bytes && launch_.shared_bytes - offset >= kChunkBytes;
            std::uint16_t halves[kChunk];
            std::fill(std::begin(halves), std::end(halves), kHalfNan);
            if (inside) std::memcpy(halves, &shared_[offset], kChunkBytes);
            for (std::uint32_t g = offset >> kernel_.shared_grain;
                 launch_.check && inside && g <= (offset + kChunkBytes - 1) >> kernel_.shared_grain; ++g) {
                if (shared_marks_[g].write_clock > product.clock) {
                    report(Kind::wgmma_overwritten, product.pc, 32 * warp.index, static_cast<int>(shared_marks_[g].writer) - 1, address);
                }
            }
            for (int at = 0; at < kChunk; ++at) {
                const int m = (transposed ? major + at : major) - first;
                put(m, transposed ? k : k + at, from_half(halves[at]));
                if (!inside || !shared_defined_[offset + 2 * static_cast<std::uint32_t>(at)] ||
                    !shared_defined_[offset + 2 * static_cast<std::uint32_t>(at) + 1]) {
                    defined[m] = 0;
                }
            }
        });
    };
    if (i.kind & 1) {
        std::uint8_t defined[kRows];
        std::fill(std::begin(defined), std::end(defined), std::uint8_t{1});
        fetch(product.a, i.kind & 2, kRows * (warp.index % 4), kRows, defined,
              [&a](int row, int k, float value) { a[row * kDepth + k] = value; });
        for (int row = 0; row < kRows; ++row) {
            if (!defined[row]) rows &= ~(1u << row);
        }
    } else {
        rows = read_a(warp, i.o + accumulators, a);
    }
    std::vector<double> b(static_cast<std::size_t>(kDepth * n));
    std::vector<float> c(static_cast<std::size_t>(kRows * n), 0.0f);
    std::vector<std::uint8_t> columns(static_cast<std::size_t>(n), 1);
    fetch(product.b, i.kind & 4, 0, n, columns.data(),
          [&b, n](int column, int k, float value) { b[static_cast<std::size_t>(k * n + column)] = value; });
    const bool adds = product.adds;
    if (adds) read_c(warp, i.o, accumulators, n, c.data());
    multiply(a, b.data(), c.data(), n);
    write_c(warp, i.o, accumulators, n, c.data());
    for (int q = 0; q < accumulators; ++q) {
        Known& known = warp.known[kWords][static_cast<std::size_t>(i.o[q])];
        const std::uint32_t lanes = known_lanes(q, rows, columns) & (adds ? known.low & known.high : kAll);
        known = {lanes, lanes};
    }
}

void Machine::wait_for_products(Warp& warp, int groups_left) {
    // Groups are told apart by the commits between them: `committed` marks the last product of a group.
    int groups = 0;
    for (const PendingProduct& product : warp.pending) groups += product.committed;
    std::size_t done = 0;
    for (; groups > groups_left; --groups) {
        bool last = false;
        while (!last) {
            last = warp.pending[done].committed;
            finish_product(warp, warp.pending[done++]);
        }
    }
    warp.pending.erase(warp.pending.begin(), warp.pending.begin() + static_cast<std::ptrdiff_t>(done));
    std::fill(warp.accumulating.begin(), warp.accumulating.end(), std::uint8_t{0});
    for (const PendingProduct& product : warp.pending) {
        const Instruction& i = kernel_.code[static_cast<std::size_t>(product.pc)];
        for (int q = 0; q < i.count / 2; ++q) warp.accumulating[static_cast<std::size_t>(i.o[q])] = 1;
        for (int q = 0; !(i.kind & 1) && q < 4; ++q) warp.accumulating[static_cast<std::size_t>(i.o[i.count / 2 + q])] |= 2;
    }
}

}  // namespace emulator
