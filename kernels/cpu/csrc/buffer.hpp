// Memory for vectors.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace refusion {

// 64-byte aligned numbers that are not set to anything. Throws std::bad_alloc.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(std::size_t count) : data_(static_cast<float*>(::operator new(count * sizeof(float), kAlignment))), count_(count) {}

    float* data() const { return data_.get(); }
    std::size_t count() const { return count_; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(float* data) const { ::operator delete(data, kAlignment); }
    };
    std::unique_ptr<float[], Free> data_;
    std::size_t count_ = 0;
};

}  // namespace refusion
