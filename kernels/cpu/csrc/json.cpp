#include "json.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <locale>
#include <sstream>

namespace refusion {
namespace {

constexpr int kDeepest = 32;
// A value of two bytes of text takes some hundred of memory.
constexpr std::size_t kMostValues = std::size_t{1} << 20;

class Reader {
  public:
    explicit Reader(const std::string& text) : text_(text) {}

    Json document() {
        Json value = read(0);
        skip_space();
        if (at_ != text_.size()) throw Malformed("does not end where it should");
        return value;
    }

  private:
    Json read(int depth) {
        if (depth > kDeepest) throw Malformed("is nested too deeply");
        if (++values_ > kMostValues) throw Malformed("has too many values");
        skip_space();
        Json value;
        const char next = at_ < text_.size() ? text_[at_] : '\0';
        if (next == '{') {
            value.kind = Json::Kind::object;
            members('}', [&] {
                value.keys.push_back(string());
                expect(':');
                value.items.push_back(read(depth + 1));
            });
            std::vector<std::string> sorted = value.keys;
            std::sort(sorted.begin(), sorted.end());
            if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) throw Malformed("has a key twice");
        } else if (next == '[') {
            value.kind = Json::Kind::list;
            members(']', [&] { value.items.push_back(read(depth + 1)); });
        } else if (next == '"') {
            value.kind = Json::Kind::text;
            value.text = string();
        } else if (word("true") || word("false")) {
            value.kind = Json::Kind::boolean;
            value.boolean = next == 't';
        } else if (!word("null")) {
            number(value);
        }
        return value;
    }

    template <class Member>
    void members(char end, const Member& member) {
        ++at_;
        if (take(end)) return;
        do {
            member();
        } while (take(','));
        expect(end);
    }

    std::string string() {
        expect('"');
        std::string value;
        for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (static_cast<unsigned char>(text_[at_]) < 0x20) throw Malformed("has a control character in a string");
            if (text_[at_] != '\\') {
                value += text_[at_];
                continue;
            }
            if (++at_ == text_.size()) break;
            static constexpr char kEscapes[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
            const char* escape = text_[at_] == '\0' ? nullptr : std::strchr(kEscapes, text_[at_]);
            if (escape != nullptr) {
                value += kMeanings[escape - kEscapes];
            } else if (text_[at_] == 'u') {
                append_utf8(value, code_point());
            } else {
                throw Malformed("has an unknown escape in a string");
            }
        }
        if (at_ == text_.size()) throw Malformed("ends too early");
        ++at_;
        return value;
    }

    // Of an escape of one or, beyond 16 bits, two halves; ends at its last character.
    std::uint32_t code_point() {
        const std::uint32_t first = four_digits();
        if (first < 0xD800 || first > 0xDFFF) return first;
        if (first < 0xDC00 && text_.compare(at_ + 1, 2, "\\u") == 0) {
            at_ += 2;
            const std::uint32_t second = four_digits();
            if (second >= 0xDC00 && second <= 0xDFFF) return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        }
        throw Malformed("has an incomplete character in a string");
    }

    std::uint32_t four_digits() {
        std::uint32_t value = 0;
        for (int i = 0; i < 4; ++i) {
            const char digit = ++at_ < text_.size() ? text_[at_] : '\0';
            const char* found = digit == '\0' ? nullptr : std::strchr("0123456789abcdef0123456789ABCDEF", digit);
            if (found == nullptr) throw Malformed("has an unknown escape in a string");
            value = value << 4 | (digit <= '9' ? static_cast<std::uint32_t>(digit - '0') : static_cast<std::uint32_t>((digit | 0x20) - 'a' + 10));
        }
        return value;
    }

    static void append_utf8(std::string& text, std::uint32_t code) {
        const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
        if (code < 0x80) {
            text += static_cast<char>(code);
        } else if (code < 0x800) {
            text += static_cast<char>(0xC0 | code >> 6);
            tail(0);
        } else if (code < 0x10000) {
            text += static_cast<char>(0xE0 | code >> 12);
            tail(6), tail(0);
        } else {
            text += static_cast<char>(0xF0 | code >> 18);
            tail(12), tail(6), tail(0);
        }
    }

    void number(Json& value) {
        const std::size_t start = at_;
        const auto digits = [&] {
            const std::size_t before = at_;
            while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
            if (at_ == before) throw Malformed("has no value where one is expected");
        };
        const auto is = [&](const char* choices) { return at_ < text_.size() && text_[at_] != '\0' && std::strchr(choices, text_[at_]); };
        if (is("-")) ++at_;
        const std::size_t first = at_;
        digits();
        if (text_[first] == '0' && at_ > first + 1) throw Malformed("has a number with a leading zero");
        bool whole = true;
        if (is(".")) {
            whole = false;
            ++at_;
            digits();
        }
        if (is("eE")) {
            whole = false;
            ++at_;
            if (is("+-")) ++at_;
            digits();
        }
        std::istringstream stream(text_.substr(start, at_ - start));
        stream.imbue(std::locale::classic());
        value.kind = whole ? Json::Kind::integer : Json::Kind::real;
        const bool read = whole ? static_cast<bool>(stream >> value.integer) : static_cast<bool>(stream >> value.real);
        if (!read || !std::isfinite(value.real)) throw Malformed("has a number out of range");
    }

    bool word(const char* wanted) {
        const std::size_t length = std::strlen(wanted);
        if (text_.compare(at_, length, wanted) != 0) return false;
        at_ += length;
        return true;
    }

    void skip_space() {
        while (at_ < text_.size() && text_[at_] != '\0' && std::strchr(" \t\r\n", text_[at_]) != nullptr) ++at_;
    }

    bool take(char wanted) {
        skip_space();
        if (at_ == text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) throw Malformed(std::string("has no '") + wanted + "' where one should be");
    }

    const std::string& text_;
    std::size_t at_ = 0, values_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& key) const {
    const auto found = std::find(keys.begin(), keys.end(), key);
    return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

Json parse_json(const std::string& text) { return Reader(text).document(); }

}  // namespace refusion
