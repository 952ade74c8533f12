// Memory for vectors.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace refusion {

// Aligned numbers that are not set to anything. Throws std::bad_alloc.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(std::size_t count) : data_(allocate(count * sizeof(float))), count_(count) {}

    float* data() const { return data_.get(); }
    std::size_t count() const { return count_; }

  private:
    struct Free {
        std::align_val_t alignment;
        void operator()(float* data) const { ::operator delete(data, alignment); }
    };
    using Numbers = std::unique_ptr<float[], Free>;

    static Numbers allocate(std::size_t bytes) {
        constexpr std::size_t cache_line = 64, page = 2 << 20;
        const bool is_large = bytes >= 4 * page;
        const std::align_val_t alignment{is_large ? page : cache_line};
        Numbers numbers(static_cast<float*>(::operator new(bytes, alignment)), Free{alignment});
#if defined(__linux__)
        // Features are read in many short pieces, almost each on a small page of its own: large pages spare the processor
        // most look-ups. The last one is left small, so that no memory is added. Where the system has none, nothing is lost.
        if (is_large) (void)madvise(numbers.get(), bytes / page * page, MADV_HUGEPAGE);
#endif
        return numbers;
    }

    Numbers data_;
    std::size_t count_ = 0;
};

}  // namespace refusion
