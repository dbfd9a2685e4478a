// The loops themselves. Included once by each products_<isa>.cpp, which is compiled for that instruction set and says
// how wide its vectors are; all names are local to the file, so that the linker cannot merge code of different sets.
//
// A tile of c, kTileRows x (kTileVectors vectors), is summed in registers; the columns of b under it, read over and
// over by the tiles above one another, stay in the first cache.

#include <algorithm>
#include <cstring>

#include "dot_loop.h"
#include "products_isa.h"

namespace lnb {
namespace {

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

inline Vector load(const float* x) {
    Vector v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline void store(float* x, Vector v) {
    std::memcpy(x, &v, sizeof v);
}

// What a product does with c.
enum class Into { kReplace, kAdd, kSubtract };

template <Into kInto>
Vector into(Vector sum, Vector before) {
    if constexpr (kInto == Into::kAdd) return before + sum;
    if constexpr (kInto == Into::kSubtract) return before - sum;
    return sum;
}

// c [kRows, kVectors vectors] from a [kRows, k] b.
template <Into kInto, int kRows, int kVectors>
void tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
    Vector sums[kRows][kVectors] = {};
    for (int64_t j = 0; j < k; ++j) {
        Vector of_b[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) of_b[v] = load(b + j * ldb + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const float factor = a[r * lda + j];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * of_b[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            float* const target = c + r * ldc + v * kLanes;
            store(target, into<kInto>(sums[r][v], kInto == Into::kReplace ? sums[r][v] : load(target)));
        }
    }
}

template <Into kInto, int kVectors>
void strip(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
    int64_t row = 0;
    for (; row + kTileRows <= m; row += kTileRows)
        tile<kInto, kTileRows, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
    for (; row + 2 <= m; row += 2) tile<kInto, 2, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
    if (row < m) tile<kInto, 1, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
}

// The last columns, fewer than a vector: b is read entry by entry, so that nothing beyond it is touched.
template <Into kInto>
void last_columns(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                  int64_t ldc) {
    for (int64_t row = 0; row < m; ++row) {
        Vector sum = {};
        for (int64_t j = 0; j < k; ++j) {
            Vector of_b = {};
            std::memcpy(&of_b, b + j * ldb, static_cast<size_t>(n) * sizeof(float));
            sum += a[row * lda + j] * of_b;
        }
        Vector before = {};
        if constexpr (kInto != Into::kReplace)
            std::memcpy(&before, c + row * ldc, static_cast<size_t>(n) * sizeof(float));
        sum = into<kInto>(sum, before);
        std::memcpy(c + row * ldc, &sum, static_cast<size_t>(n) * sizeof(float));
    }
}

template <Into kInto>
void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
             int64_t ldc) {
    int64_t column = 0;
    for (; column + kTileVectors * kLanes <= n; column += kTileVectors * kLanes) {
        strip<kInto, kTileVectors>(m, k, a, lda, b + column, ldb, c + column, ldc);
    }
    for (; column + kLanes <= n; column += kLanes) strip<kInto, 1>(m, k, a, lda, b + column, ldb, c + column, ldc);
    if (column < n) last_columns<kInto>(m, n - column, k, a, lda, b + column, ldb, c + column, ldc);
}

// Without its sign, a float is as large as its bits are as an integer, and those vectorise.
float largest(const float* x, int64_t size) {
    int32_t most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < size; ++j) {
        int32_t bits;
        std::memcpy(&bits, x + j, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float found;
    std::memcpy(&found, &most, sizeof found);
    return found;
}

void add_scaled(float* y, const float* x, float factor, int64_t size) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) y[j] += factor * x[j];
}

void scale(float* y, float factor, int64_t size) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) y[j] *= factor;
}

constexpr int64_t kGroup = 16;  // entries that are multiplied one by one

template <int kShifts>
void shifted_products(int64_t count, const float* x, const float* y, int64_t step, float* sums) {
    for (int64_t lane = 0; lane < kGroup; lane += kLanes) {
        Vector total[kShifts] = {};
        for (int64_t j = 0; j < count; ++j) {
            const Vector of_x = load(x + j * kGroup + lane);
#pragma GCC unroll 8
            for (int i = 0; i < kShifts; ++i) total[i] += of_x * load(y + (j + i * step) * kGroup + lane);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kShifts; ++i) {
            float* const target = sums + i * kGroup + lane;
            store(target, load(target) + total[i]);
        }
    }
}

void lane_products(int64_t count, int64_t shifts, const float* x, const float* y, int64_t step, float* sums) {
    int64_t i = 0;
    for (; i + 8 <= shifts; i += 8) shifted_products<8>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
    for (; i + 4 <= shifts; i += 4) shifted_products<4>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
    for (; i < shifts; ++i) shifted_products<1>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
}

#define LNB_PRODUCT_LOOPS       \
    {&product<Into::kReplace>,  \
     &product<Into::kAdd>,      \
     &product<Into::kSubtract>, \
     &dot,                      \
     &largest,                  \
     &add_scaled,               \
     &scale,                    \
     &lane_products}

}  // namespace
}  // namespace lnb
