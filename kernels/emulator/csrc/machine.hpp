// Runs a launch, one CTA after another, warp by warp and 32 lanes at a time, with the checker and the counters.
//
// A warp runs until it waits at a barrier or ends. Where its lanes are at different places, the lowest place goes first, so that
// they meet again. What is not modeled: time, caches, the order of memory accesses beyond barriers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "findings.hpp"
#include "instruction.hpp"
#include "memory.hpp"

namespace emulator {

inline constexpr std::uint32_t kAll = 0xffffffff;

struct Launch {
    std::vector<Region> regions;
    std::vector<std::uint8_t> parameters;
    std::int32_t grid[3];
    std::int32_t threads;
    std::uint32_t shared_bytes, shared_base;
    bool check;
    bool backward;          // the last warp and the last CTA go first
    std::uint64_t budget;   // warp instructions
};

// Of one instruction. Units are sectors of global memory or wavefronts of shared memory; `least` is how few there could be.
struct Count {
    std::uint64_t warps, lanes, units, least;
};
inline constexpr int kCountFields = sizeof(Count) / sizeof(std::uint64_t);

struct alignas(64) Words {
    std::uint32_t v[32];
};
struct alignas(64) Longs {
    std::uint64_t v[32];
};
// Lanes in which the lower and the upper half of a register are defined.
struct Known {
    std::uint32_t low = 0, high = 0;
};

struct PendingProduct {
    int pc;
    std::uint64_t a, b;
    std::uint32_t clock;
    bool committed;
    bool adds;  // to what the accumulators hold, instead of replacing it
};

struct Warp {
    std::vector<Words> words;
    std::vector<Longs> longs;
    std::vector<std::uint32_t> predicates;
    std::array<std::vector<Known>, 3> known;
    std::vector<std::uint8_t> accumulating;  // words that an unfinished wgmma writes
    std::vector<std::uint8_t> unfenced;      // words written since the last wgmma.fence
    std::vector<PendingProduct> pending;
    std::uint32_t alive, places[32], place, epoch = 0;
    int index;
    bool diverged, done, waiting;
    bool fenced;  // whether there was a wgmma.fence yet
};

class Machine {
  public:
    Machine(const Kernel& kernel, const Launch& launch, Count* counts, Traffic* traffic);
    void run();
    const std::vector<Finding>& findings() const { return findings_.list; }

  private:
    void begin();
    void execute(Warp& warp);
    void finish(Warp& warp);
    void propagate(Warp& warp, const Instruction& i, std::uint32_t mask, int pc);
    void load_parameter(Warp& warp, const Instruction& i, std::uint32_t mask, int pc);
    void access_global(Warp& warp, const Instruction& i, std::uint32_t mask, bool store, int pc);
    void access_shared(Warp& warp, const Instruction& i, std::uint32_t mask, bool store, int pc);
    void move_matrices(Warp& warp, const Instruction& i, bool store, bool transposed, int pc);
    void shuffle(Warp& warp, const Instruction& i, std::uint32_t mask);
    void multiply_fragments(Warp& warp, const Instruction& i);
    void start_product(Warp& warp, const Instruction& i, int pc);
    void finish_product(Warp& warp, const PendingProduct& product);
    void wait_for_products(Warp& warp, int groups_left);

    int region_of(std::uint64_t address, std::uint64_t size);
    void mark_global(int region, std::uint64_t offset, int size, int thread, bool store, bool same, int pc);
    void mark_shared(const Warp& warp, std::uint32_t offset, int size, int thread, bool store, bool same, bool async, int pc);
    // Bytes of an access to shared memory, or null out of bounds; `from` is what is stored, or null for a load.
    std::uint8_t* shared_bytes(const Warp& warp, std::uint32_t address, int size, int thread, const std::uint8_t* from, bool async, int pc);
    bool whole(std::uint32_t mask, int warp_index) const;
    void report(Kind kind, int pc, int thread, int other = 0, std::uint64_t address = 0) { findings_.add(kind, pc, cta_, thread, other, address); }

    const Kernel& kernel_;
    const Launch& launch_;
    Count* counts_;
    Traffic* traffic_;
    Findings findings_;
    std::vector<Warp> warps_;
    std::vector<std::uint8_t> shared_, shared_defined_;
    std::vector<SharedMark> shared_marks_;
    std::vector<std::vector<GlobalMark>> global_marks_;
    std::vector<std::vector<std::uint32_t>> read_in_cta_;  // of each sector: the last CTA that read it
    std::vector<std::vector<std::uint8_t>> touched_;       // of each sector: 1 read, 2 written
    std::vector<std::uint32_t> fences_;                    // of each thread: how many
    std::vector<std::uint32_t> fence_epochs_;              // and when it passed the last one
    int cta_ = 0, barrier_pc_ = 0, last_region_ = 0;
    std::uint32_t epoch_ = 0, clock_ = 0;
    std::uint64_t executed_ = 0;
    bool stopped_ = false;
};

}  // namespace emulator
