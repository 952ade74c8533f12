#include "machine.hpp"

#include <algorithm>
#include <cstring>

namespace emulator {

Machine::Machine(const Kernel& kernel, const Launch& launch, Count* counts, Traffic* traffic)
    : kernel_(kernel), launch_(launch), counts_(counts), traffic_(traffic) {
    shared_.resize(launch.shared_bytes);
    shared_defined_.resize(launch.shared_bytes);
    shared_marks_.resize(launch.check ? (launch.shared_bytes >> kernel.shared_grain) + 1 : 0);
    fences_.assign(static_cast<std::size_t>(launch.threads), 0);
    fence_epochs_ = fences_;
    for (const Region& region : launch.regions) {
        const bool marked = launch.check && region.writable;
        global_marks_.emplace_back(marked ? (region.size >> region.grain) + 2 : 0);
        read_in_cta_.emplace_back((region.size >> 5) + 2, 0u);
        touched_.emplace_back((region.size >> 5) + 2, std::uint8_t{0});
    }
    warps_.resize(static_cast<std::size_t>((launch.threads + 31) / 32));
    for (std::size_t index = 0; index < warps_.size(); ++index) {
        Warp& warp = warps_[index];
        warp.index = static_cast<int>(index);
        warp.words.resize(static_cast<std::size_t>(kernel.registers[kWords]));
        warp.longs.resize(static_cast<std::size_t>(kernel.registers[kLongs]));
        warp.predicates.resize(static_cast<std::size_t>(kernel.registers[kPredicates]));
        for (int file = 0; file < 3; ++file) warp.known[file].resize(static_cast<std::size_t>(kernel.registers[file]));
        warp.accumulating.resize(warp.words.size());
        warp.unfenced.resize(warp.words.size());
    }
}

void Machine::run() {
    const int ctas = launch_.grid[0] * launch_.grid[1] * launch_.grid[2], warps = static_cast<int>(warps_.size());
    for (int k = 0; k < ctas && !stopped_; ++k) {
        cta_ = launch_.backward ? ctas - 1 - k : k;
        begin();
        for (bool ended = false; !ended && !stopped_;) {
            ended = true;
            for (int n = 0; n < warps && !stopped_; ++n) {
                Warp& warp = warps_[static_cast<std::size_t>(launch_.backward ? warps - 1 - n : n)];
                if (!warp.done) execute(warp);
                ended = ended && warp.done;
            }
            if (ended) break;
            // Everyone waits or is gone. A barrier counts all threads of the CTA, so nobody may be gone.
            for (Warp& warp : warps_) {
                if (warp.done && !stopped_) report(Kind::barrier, barrier_pc_, 32 * warp.index);
                warp.waiting = false;
                ++warp.epoch;
            }
            ++epoch_;
        }
    }
    for (std::size_t region = 0; region < touched_.size(); ++region) {
        for (const std::uint8_t touch : touched_[region]) {
            traffic_[region].read_sectors_once += touch & 1;
            traffic_[region].written_sectors_once += touch >> 1 & 1;
        }
    }
}

void Machine::begin() {
    ++epoch_;
    // All bits set is NaN, and undefined.
    std::fill(shared_.begin(), shared_.end(), std::uint8_t{0xff});
    std::fill(shared_defined_.begin(), shared_defined_.end(), std::uint8_t{0});
    const int x = cta_ % launch_.grid[0], y = cta_ / launch_.grid[0] % launch_.grid[1], z = cta_ / launch_.grid[0] / launch_.grid[1];
    for (Warp& warp : warps_) {
        const int lanes = std::min(32, launch_.threads - 32 * warp.index);
        warp.alive = lanes == 32 ? kAll : (1u << lanes) - 1;
        warp.place = 0;
        ++warp.epoch;
        warp.diverged = warp.done = warp.waiting = warp.fenced = false;
        warp.pending.clear();
        std::fill(warp.accumulating.begin(), warp.accumulating.end(), std::uint8_t{0});
        std::fill(warp.unfenced.begin(), warp.unfenced.end(), std::uint8_t{0});
        for (std::vector<Known>& file : warp.known) std::fill(file.begin(), file.end(), Known{});
        for (const Constant& constant : kernel_.constants) {
            const auto index = static_cast<std::size_t>(constant.index);
            warp.known[static_cast<std::size_t>(constant.file)][index] = {kAll, kAll};
            std::uint64_t value = constant.value;
            switch (constant.special) {
                case 2: value = static_cast<std::uint64_t>(x); break;
                case 3: value = static_cast<std::uint64_t>(y); break;
                case 4: value = static_cast<std::uint64_t>(z); break;
                case 5: case 6: case 7: value = static_cast<std::uint64_t>(launch_.grid[constant.special - 5]); break;
                case 8: value = static_cast<std::uint64_t>(launch_.threads); break;
                default: break;
            }
            for (int lane = 0; lane < 32; ++lane) {
                if (constant.special == 1) value = static_cast<std::uint64_t>(32 * warp.index + lane);
                if (constant.file == kWords) warp.words[index].v[lane] = static_cast<std::uint32_t>(value);
                if (constant.file == kLongs) warp.longs[index].v[lane] = value;
            }
            if (constant.file == kPredicates) warp.predicates[index] = value ? kAll : 0;
        }
    }
}

void Machine::finish(Warp& warp) {
    warp.done = true;
    for (const PendingProduct& product : warp.pending) report(Kind::wgmma_unfinished, product.pc, 32 * warp.index);
    warp.pending.clear();
}

bool Machine::whole(std::uint32_t mask, int warp_index) const {
    const int lanes = std::min(32, launch_.threads - 32 * warp_index);
    return mask == (lanes == 32 ? kAll : (1u << lanes) - 1);
}

// ---- who may touch what

int Machine::region_of(std::uint64_t address, std::uint64_t size) {
    const auto holds = [&](const Region& region) { return address >= region.address && address - region.address + size <= region.size; };
    if (!launch_.regions.empty() && holds(launch_.regions[static_cast<std::size_t>(last_region_)])) return last_region_;
    for (std::size_t k = 0; k < launch_.regions.size(); ++k) {
        if (holds(launch_.regions[k])) return last_region_ = static_cast<int>(k);
    }
    return -1;
}

void Machine::mark_global(int region, std::uint64_t offset, int size, int thread, bool store, bool same, int pc) {
    std::vector<GlobalMark>& marks = global_marks_[static_cast<std::size_t>(region)];
    if (marks.empty()) return;
    const Region& where = launch_.regions[static_cast<std::size_t>(region)];
    const auto me = static_cast<std::uint32_t>(thread + 1), here = static_cast<std::uint32_t>(cta_ + 1);
    for (std::uint64_t g = offset >> where.grain; g <= (offset + static_cast<std::uint64_t>(size) - 1) >> where.grain; ++g) {
        GlobalMark& mark = marks[g];
        const auto race = [&](bool far, std::uint32_t other) {
            report(far ? Kind::global_between_ctas : Kind::global_within_cta, pc, thread, static_cast<int>(other) - 1, where.address + offset);
        };
        const bool far = mark.write_cta != here;
        if (mark.writer && (far || (mark.write_epoch == epoch_ && mark.writer != me))) {
            if (store && same) {
                report(Kind::same_value, pc, thread, static_cast<int>(mark.writer) - 1, where.address + offset);
            } else {
                race(far, mark.writer);
            }
        }
        if (store) {
            const bool far_reader = mark.read_cta != here;
            if (mark.reader && (far_reader || (mark.read_epoch == epoch_ && mark.reader != me))) race(far_reader, mark.reader & kThread);
            mark.writer = me, mark.write_epoch = epoch_, mark.write_cta = here;
        } else {
            mark.read_cta = mark.reader && mark.read_cta != here ? kManyCtas : here;
            mark.reader = mark.reader && mark.read_epoch == epoch_ && mark.reader != me ? kManyWarps | me : me;
            mark.read_epoch = epoch_;
        }
    }
}

void Machine::mark_shared(const Warp& warp, std::uint32_t offset, int size, int thread, bool store, bool same, bool async, int pc) {
    const auto me = static_cast<std::uint32_t>(thread + 1);
    const auto warp_of = [](std::uint32_t reader) { return ((reader & kThread) - 1) / 32; };
    const std::uint32_t last = (offset + static_cast<std::uint32_t>(size) - 1) >> kernel_.shared_grain, my_warp = static_cast<std::uint32_t>(thread) / 32;
    for (std::uint32_t g = offset >> kernel_.shared_grain; g <= last; ++g) {
        SharedMark& mark = shared_marks_[g];
        if (mark.writer && mark.write_epoch == epoch_ && mark.writer != me) {
            const int other = static_cast<int>(mark.writer) - 1;
            if (store && same) {
                report(Kind::same_value, pc, thread, other, offset);
            } else if (warp_of(mark.writer) != my_warp) {
                report(store ? Kind::shared_write_after_write : Kind::shared_read_after_write, pc, thread, other, offset);
            } else if (mark.write_warp_epoch == warp.epoch) {
                report(Kind::shared_within_warp, pc, thread, other, offset);
            }
        }
        // The fence may lie anywhere on the way from the write to the product: with the thread that wrote, or, behind a barrier,
        // with the one that multiplies.
        if (async && mark.writer && fences_[mark.writer - 1] == mark.write_fence &&
            fence_epochs_[static_cast<std::size_t>(thread)] <= mark.write_epoch) {
            report(Kind::proxy_fence, pc, thread, static_cast<int>(mark.writer) - 1, offset);
        }
        const bool read_now = mark.reader && mark.read_epoch == epoch_;
        if (store) {
            if (read_now) {
                const int other = static_cast<int>(mark.reader & kThread) - 1;
                if ((mark.reader & kManyWarps) || warp_of(mark.reader) != my_warp) {
                    report(Kind::shared_write_after_read, pc, thread, other, offset);
                } else if (mark.read_warp_epoch == warp.epoch && ((mark.reader & kManyLanes) || other != thread)) {
                    report(Kind::shared_within_warp, pc, thread, other, offset);
                }
            }
            mark.writer = me, mark.write_epoch = epoch_, mark.write_warp_epoch = warp.epoch, mark.write_clock = ++clock_;
            mark.write_fence = fences_[static_cast<std::size_t>(thread)];
        } else {
            if (!read_now) {
                mark.reader = me;
            } else if (warp_of(mark.reader) != my_warp) {
                mark.reader |= kManyWarps;
            } else if ((mark.reader & kThread) != me) {
                mark.reader |= kManyLanes;
            }
            mark.read_epoch = epoch_, mark.read_warp_epoch = warp.epoch;
        }
    }
}

std::uint8_t* Machine::shared_bytes(const Warp& warp, std::uint32_t address, int size, int thread, const std::uint8_t* from, bool async, int pc) {
    const std::uint32_t offset = address - launch_.shared_base, bytes = static_cast<std::uint32_t>(size);
    if (offset > launch_.shared_bytes || bytes > launch_.shared_bytes - offset) {
        report(Kind::shared_bounds, pc, thread, size, address);
        return nullptr;
    }
    if (address & (bytes - 1)) report(Kind::shared_alignment, pc, thread, size, address);
    if (launch_.check) mark_shared(warp, offset, size, thread, from != nullptr, from && std::memcmp(&shared_[offset], from, bytes) == 0, async, pc);
    if (from) std::memcpy(&shared_[offset], from, bytes);
    return &shared_[offset];
}

// ---- loads and stores

namespace {

std::uint64_t read_register(const Warp& warp, const Instruction& i, int operand, int lane) {
    const auto index = static_cast<std::size_t>(i.o[operand]);
    return (i.c[operand] & kFile) == kLongs ? warp.longs[index].v[lane] : warp.words[index].v[lane];
}

void write_register(Warp& warp, const Instruction& i, int operand, int lane, std::uint64_t value) {
    const auto index = static_cast<std::size_t>(i.o[operand]);
    if ((i.c[operand] & kFile) == kLongs) {
        warp.longs[index].v[lane] = value;
    } else {
        warp.words[index].v[lane] = static_cast<std::uint32_t>(value);
    }
}

Known& known_of(Warp& warp, const Instruction& i, int operand) { return warp.known[i.c[operand] & kFile][static_cast<std::size_t>(i.o[operand])]; }

void set_known(Warp& warp, const Instruction& i, int operand, std::uint32_t mask, std::uint32_t low, std::uint32_t high) {
    Known& known = known_of(warp, i, operand);
    known.low = (known.low & ~mask) | (low & mask);
    known.high = (known.high & ~mask) | (high & mask);
}

// A lane of a register that `size` bytes with this shadow were loaded into; null where nothing could be loaded.
void load_shadow(Known& known, int lane, const std::uint8_t* shadow, int size) {
    const std::uint32_t bit = 1u << lane;
    const int half = size / 2;
    bool low = shadow && all_defined(shadow, half), high = shadow && all_defined(shadow + half, size - half);
    if (size < 4) low = high = low && high;
    known.low = low ? known.low | bit : known.low & ~bit;
    known.high = high ? known.high | bit : known.high & ~bit;
}

// Which bytes of a register are defined, as a shadow of `size` bytes.
void write_shadow(std::uint8_t* shadow, const Known& known, int lane, int size, bool is_long) {
    const int half = size == 8 ? 4 : size == 4 && !is_long ? 2 : size;
    for (int at = 0; at < size; ++at) shadow[at] = static_cast<std::uint8_t>((at < half ? known.low : known.high) >> lane & 1);
}

}  // namespace

void Machine::load_parameter(Warp& warp, const Instruction& i, std::uint32_t mask, int pc) {
    const int size = std::abs(i.size);
    if (i.offset < 0 || static_cast<std::size_t>(i.offset) + static_cast<std::size_t>(size) > launch_.parameters.size()) {
        report(Kind::parameter_bounds, pc, 32 * warp.index, size, static_cast<std::uint64_t>(i.offset));
        return;
    }
    std::uint64_t value = 0;
    std::memcpy(&value, launch_.parameters.data() + i.offset, static_cast<std::size_t>(size));
    if (i.size == -4) value = static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(value)));
    for (int lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) write_register(warp, i, 0, lane, value);
    }
    set_known(warp, i, 0, mask, kAll, kAll);
}

void Machine::access_global(Warp& warp, const Instruction& i, std::uint32_t mask, bool store, int pc) {
    const int size = i.size * i.count, address_operand = store ? 0 : i.count, first = store ? 1 : 0;
    const auto bytes = static_cast<std::size_t>(size);
    const Longs& base = warp.longs[static_cast<std::size_t>(i.o[address_operand])];
    const Known& base_known = known_of(warp, i, address_operand);
    if (const std::uint32_t missing = mask & ~(base_known.low & base_known.high); launch_.check && missing) {
        report(Kind::undefined_address, pc, 32 * warp.index + __builtin_ctz(missing), i.o[address_operand]);
    }
    if (store && launch_.check) {
        for (int element = 0; element < i.count; ++element) {
            const Known& known = known_of(warp, i, first + element);
            if (const std::uint32_t missing = mask & ~(i.size <= 2 ? known.low : known.low & known.high)) {
                const int lane = __builtin_ctz(missing);
                report(Kind::undefined_store, pc, 32 * warp.index + lane, i.o[first + element], base.v[lane] + static_cast<std::uint64_t>(i.offset));
            }
        }
    }
    std::uint64_t sectors[64];
    int number = 0, lanes = 0, request = -1;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        ++lanes;
        const std::uint64_t address = base.v[lane] + static_cast<std::uint64_t>(i.offset);
        const int thread = 32 * warp.index + lane, region = region_of(address, bytes);
        std::uint8_t data[16], shadow[16];
        if (store) {
            for (int element = 0; element < i.count; ++element) {
                const std::uint64_t value = read_register(warp, i, first + element, lane);
                std::memcpy(data + element * i.size, &value, static_cast<std::size_t>(i.size));
            }
        }
        if (address & (bytes - 1)) report(Kind::global_alignment, pc, thread, size, address);
        if (region < 0) {
            report(Kind::global_bounds, pc, thread, size, address);
            std::memset(data, 0xff, sizeof data);
            std::memset(shadow, 0, sizeof shadow);
        } else {
            request = region;
            const Region& where = launch_.regions[static_cast<std::size_t>(region)];
            const std::uint64_t offset = address - where.address;
            if (store && !where.writable) report(Kind::global_read_only, pc, thread, region, address);
            if (launch_.check) mark_global(region, offset, size, thread, store, store && std::memcmp(where.data + offset, data, bytes) == 0, pc);
            if (store) {
                std::memcpy(where.data + offset, data, bytes);
                // Without the checker nobody knows what is in a register, but all the same which bytes were written.
                std::memset(where.defined + offset, 1, bytes);
                for (int element = 0; launch_.check && element < i.count; ++element) {
                    write_shadow(where.defined + offset + element * i.size, known_of(warp, i, first + element), lane, i.size,
                                 (i.c[first + element] & kFile) == kLongs);
                }
            } else {
                std::memcpy(data, where.data + offset, bytes);
                std::memcpy(shadow, where.defined + offset, bytes);
            }
            const std::uint64_t sector = address >> 5;
            int at = number - 1;
            while (at >= 0 && sectors[at] != sector) --at;
            if (at < 0) {
                sectors[number++] = sector;
                const auto slot = static_cast<std::size_t>(sector - (where.address >> 5)), r = static_cast<std::size_t>(region);
                touched_[r][slot] |= store ? 2 : 1;
                if (store) {
                    ++traffic_[r].written_sectors;
                } else {
                    ++traffic_[r].read_sectors;
                    if (read_in_cta_[r][slot] != static_cast<std::uint32_t>(cta_ + 1)) {
                        read_in_cta_[r][slot] = static_cast<std::uint32_t>(cta_ + 1);
                        ++traffic_[r].read_sectors_once_per_cta;
                    }
                }
            }
        }
        if (!store) {
            for (int element = 0; element < i.count; ++element) {
                std::uint64_t value = 0;
                std::memcpy(&value, data + element * i.size, static_cast<std::size_t>(i.size));
                write_register(warp, i, first + element, lane, value);
                load_shadow(known_of(warp, i, first + element), lane, shadow + element * i.size, i.size);
            }
        }
    }
    if (!store && request >= 0) ++traffic_[request].read_requests;
    counts_[pc].units += static_cast<std::uint64_t>(number);
    counts_[pc].least += (static_cast<std::uint64_t>(lanes) * bytes + 31) / 32;
}

void Machine::access_shared(Warp& warp, const Instruction& i, std::uint32_t mask, bool store, int pc) {
    const int size = i.size * i.count, address_operand = store ? 0 : i.count, first = store ? 1 : 0;
    const Known& base_known = known_of(warp, i, address_operand);
    if (const std::uint32_t missing = mask & ~(base_known.low & base_known.high); launch_.check && missing) {
        report(Kind::undefined_address, pc, 32 * warp.index + __builtin_ctz(missing), i.o[address_operand]);
    }
    std::uint32_t addresses[32];
    const Words& base = warp.words[static_cast<std::size_t>(i.o[address_operand])];
    for (int lane = 0; lane < 32; ++lane) addresses[lane] = base.v[lane] + static_cast<std::uint32_t>(i.offset);
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        std::uint8_t data[16];
        if (store) {
            for (int element = 0; element < i.count; ++element) {
                const std::uint64_t value = read_register(warp, i, first + element, lane);
                std::memcpy(data + element * i.size, &value, static_cast<std::size_t>(i.size));
            }
        }
        const std::uint8_t* found = shared_bytes(warp, addresses[lane], size, 32 * warp.index + lane, store ? data : nullptr, false, pc);
        std::uint8_t* shadow = found ? shared_defined_.data() + (found - shared_.data()) : nullptr;
        for (int element = 0; element < i.count; ++element) {
            Known& known = known_of(warp, i, first + element);
            if (store) {
                if (shadow) write_shadow(shadow + element * i.size, known, lane, i.size, (i.c[first + element] & kFile) == kLongs);
                continue;
            }
            std::uint64_t value = 0;
            if (found) {
                std::memcpy(&value, found + element * i.size, static_cast<std::size_t>(i.size));
            } else {
                std::memset(&value, 0xff, static_cast<std::size_t>(i.size));
            }
            write_register(warp, i, first + element, lane, value);
            load_shadow(known, lane, shadow ? shadow + element * i.size : nullptr, i.size);
        }
    }
    const Wavefronts waves = count_wavefronts(addresses, mask, size);
    counts_[pc].units += waves.taken;
    counts_[pc].least += waves.least;
}

void Machine::move_matrices(Warp& warp, const Instruction& i, bool store, bool transposed, int pc) {
    // Lanes 8 k to 8 k + 7 name the rows of matrix k. Lane l holds row l / 4, columns 2 (l % 4) and the next; transposed, it holds
    // the same of the transposed matrix.
    const int operand = store ? 0 : i.count, first = store ? 1 : 0;
    const Known& base_known = known_of(warp, i, operand);
    const std::uint32_t used = i.count == 4 ? kAll : (1u << 8 * i.count) - 1;
    if (const std::uint32_t missing = used & ~(base_known.low & base_known.high); launch_.check && missing) {
        report(Kind::undefined_address, pc, 32 * warp.index + __builtin_ctz(missing), i.o[operand]);
    }
    std::uint32_t addresses[32];
    const Words& base = warp.words[static_cast<std::size_t>(i.o[operand])];
    for (int lane = 0; lane < 32; ++lane) addresses[lane] = base.v[lane] + static_cast<std::uint32_t>(i.offset);
    for (int k = 0; k < i.count; ++k) {
        std::uint16_t values[8][8];
        std::uint8_t defined[8][8];  // of elements
        Words& reg = warp.words[static_cast<std::size_t>(i.o[first + k])];
        Known& known = known_of(warp, i, first + k);
        const auto row_of = [transposed](int lane, int half) { return transposed ? 2 * (lane % 4) + half : lane / 4; };
        const auto column_of = [transposed](int lane, int half) { return transposed ? lane / 4 : 2 * (lane % 4) + half; };
        if (store) {
            for (int lane = 0; lane < 32; ++lane) {
                for (int half = 0; half < 2; ++half) {
                    values[row_of(lane, half)][column_of(lane, half)] = static_cast<std::uint16_t>(reg.v[lane] >> 16 * half);
                    defined[row_of(lane, half)][column_of(lane, half)] = (half ? known.high : known.low) >> lane & 1;
                }
            }
        }
        for (int row = 0; row < 8; ++row) {
            const auto* from = store ? reinterpret_cast<const std::uint8_t*>(values[row]) : nullptr;
            const std::uint8_t* found = shared_bytes(warp, addresses[8 * k + row], 16, 32 * warp.index + 8 * k + row, from, false, pc);
            std::uint8_t* shadow = found ? shared_defined_.data() + (found - shared_.data()) : nullptr;
            for (int column = 0; column < 8; ++column) {
                if (store) {
                    if (shadow) shadow[2 * column] = shadow[2 * column + 1] = defined[row][column];
                } else {
                    defined[row][column] = shadow && shadow[2 * column] && shadow[2 * column + 1];
                }
            }
            if (!store) {
                if (found) {
                    std::memcpy(values[row], found, 16);
                } else {
                    std::memset(values[row], 0xff, 16);
                }
            }
        }
        if (!store) {
            Known result;
            for (int lane = 0; lane < 32; ++lane) {
                const auto value = [&](int half) { return static_cast<std::uint32_t>(values[row_of(lane, half)][column_of(lane, half)]); };
                const auto bit = [&](int half) { return static_cast<std::uint32_t>(defined[row_of(lane, half)][column_of(lane, half)]) << lane; };
                reg.v[lane] = value(0) | value(1) << 16;
                result.low |= bit(0);
                result.high |= bit(1);
            }
            known = result;
        }
    }
    const Wavefronts waves = count_wavefronts(addresses, used, 16);
    counts_[pc].units += waves.taken;
    counts_[pc].least += waves.least;
}

}  // namespace emulator
