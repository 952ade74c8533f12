// Memory for kernels that read and write features: what they must not touch is watched.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "require.hpp"

namespace blocks {

using Numbers = std::vector<float>;

constexpr float kCanary = -77.0f;

inline bool same_bits(const Numbers& one, const Numbers& other) {
    return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

inline Numbers normal(std::size_t count, std::mt19937& random, double scale = 1.0) {
    Numbers numbers(count);
    std::normal_distribution<double> draw(0.0, scale);
    for (float& number : numbers) number = static_cast<float>(draw(random));
    return numbers;
}

// Pixels in memory that begins before the first of them, and often ends with the last channel of the last one, so that one
// number behind it is beyond the block. All other numbers are canaries, or NaN where the pixels are read, so that what is
// made of them shows.
class Block {
  public:
    // To be written.
    Block(std::size_t pixels, std::size_t channels, std::mt19937& random) : Block(pixels, channels, random, kCanary) { before_ = memory_; }

    // To be read: holds these numbers.
    Block(std::size_t pixels, std::size_t channels, std::mt19937& random, const Numbers& numbers) : Block(pixels, channels, random, NAN) {
        for (std::size_t i = 0; i < numbers.size(); ++i) memory_[place(i)] = numbers[i];
        before_ = memory_;
    }

    // Stay where they are when the block moves.
    refusion::Pixels<float> pixels() { return {memory_.data() + shift_, static_cast<std::ptrdiff_t>(pitch_)}; }
    refusion::Pixels<const float> read_only() const { return {memory_.data() + shift_, static_cast<std::ptrdiff_t>(pitch_)}; }

    // What the pixels hold by now; requires that nothing else has changed.
    Numbers found() const {
        Numbers numbers(pixels_ * channels_), rest = memory_;
        for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::exchange(rest[place(i)], before_[place(i)]);
        require(same_bits(rest, before_), "written between the pixels, before, or behind them");
        return numbers;
    }

    void require_unchanged() const { require(same_bits(memory_, before_), "written to what is to be read"); }

  private:
    Block(std::size_t pixels, std::size_t channels, std::mt19937& random, float gap)
        : pixels_(pixels),
          channels_(channels),
          pitch_(channels + random() % 3 * (random() % 20)),
          shift_(random() % 17),
          memory_(shift_ + (pixels - 1) * pitch_ + channels + random() % 2 * (random() % 40), gap) {}

    std::size_t place(std::size_t number) const { return shift_ + number / channels_ * pitch_ + number % channels_; }

    std::size_t pixels_, channels_, pitch_, shift_;
    Numbers memory_, before_;
};

}  // namespace blocks
