// Half-open ranges of integers, and how work is cut into them.
#pragma once

#include <cstdint>

namespace lnb {

struct Range {
    int64_t begin, end;

    int64_t size() const { return end - begin; }
};

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// The i-th of `pieces` ranges of nearly equal size that make up [0, size).
inline Range piece(int64_t size, int64_t pieces, int64_t i) {
    return {size * i / pieces, size * (i + 1) / pieces};
}

}  // namespace lnb
