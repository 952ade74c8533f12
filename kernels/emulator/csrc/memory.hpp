// Global and shared memory with their shadows: which bytes are defined, and who touched them last.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace emulator {

// A buffer that a launch may touch. Everything outside all of them is out of bounds.
struct Region {
    std::uint64_t address, size;
    std::uint8_t* data;
    std::uint8_t* defined;  // 1 for every defined byte
    bool writable;
    std::int32_t grain;     // log2 of the bytes by which races are told apart
};

// Traffic of one region, in sectors of 32 bytes.
struct Traffic {
    std::uint64_t read_requests, read_sectors, read_sectors_once_per_cta, read_sectors_once, written_sectors, written_sectors_once;
};
inline constexpr int kTrafficFields = sizeof(Traffic) / sizeof(std::uint64_t);

// Who touched a grain of shared memory last. Threads count from 1. Epochs are barrier intervals and never repeat.
struct SharedMark {
    std::uint32_t writer = 0, write_epoch = 0, write_warp_epoch = 0, write_fence = 0, write_clock = 0;
    std::uint32_t reader = 0, read_epoch = 0, read_warp_epoch = 0;
};

struct GlobalMark {
    std::uint32_t writer = 0, write_epoch = 0, write_cta = 0, reader = 0, read_epoch = 0, read_cta = 0;
};

// In `reader`: more than one lane of a warp, more than one warp, and the thread.
inline constexpr std::uint32_t kManyLanes = 1u << 30, kManyWarps = 1u << 31, kThread = kManyLanes - 1;
inline constexpr std::uint32_t kManyCtas = 0xffffffff;

inline bool all_defined(const std::uint8_t* shadow, int size) {
    int at = 0;
    for (; at + 8 <= size; at += 8) {
        std::uint64_t eight;
        std::memcpy(&eight, shadow + at, 8);
        if (eight != 0x0101010101010101u) return false;
    }
    for (; at < size; ++at) {
        if (!shadow[at]) return false;
    }
    return true;
}

// Wavefronts of 128 bytes that an access to shared memory takes: the lanes go in groups that ask for at most 128 bytes, and a
// group takes as many as the words of its busiest bank. Several lanes may read one word at once.
struct Wavefronts {
    std::uint32_t taken = 0, least = 0;
};

inline Wavefronts count_wavefronts(const std::uint32_t* addresses, std::uint32_t mask, int size) {
    const int words = size < 4 ? 1 : size / 4, lanes = 32 / words;
    Wavefronts result;
    for (int first = 0; first < 32; first += lanes) {
        std::uint32_t seen[32][32];
        std::uint8_t number[32] = {};
        std::uint32_t most = 0;
        for (int lane = first; lane < first + lanes; ++lane) {
            if (!(mask >> lane & 1)) continue;
            for (int k = 0; k < words; ++k) {
                const std::uint32_t word = (addresses[lane] >> 2) + static_cast<std::uint32_t>(k), bank = word & 31;
                int at = 0;
                while (at < number[bank] && seen[bank][at] != word) ++at;
                if (at == number[bank]) seen[bank][number[bank]++] = word;
                if (number[bank] > most) most = number[bank];
            }
        }
        result.taken += most;
        result.least += most > 0;
    }
    return result;
}

}  // namespace emulator
