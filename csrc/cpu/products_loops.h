// Included by isa_loops.cpp, which is compiled for every instruction set; all names are local to the file, so that the
// linker cannot merge code of different sets.
//
// A tile of c, kTileRows x (kTileVectors vectors), is summed in registers; the columns of b under it, read over and
// over by the tiles above one another, stay in the first cache.

#include <cstring>
#include <limits>
#include <type_traits>

#include "dot_loop.h"
#include "products_isa.h"

namespace lnb {
namespace {
namespace of_products {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6, kTileVectors = 2;
#else
constexpr int kVectorBytes = 16, kTileRows = 4, kTileVectors = 2;
#endif

constexpr int64_t kGroup = 16;  // entries that are multiplied one by one

// What a product does with c.
enum class Into { kReplace, kAdd, kSubtract };

template <typename Real>
struct Products {
    // NOLINTNEXTLINE(modernize-use-using): GCC takes the attribute of a dependent type in this form alone.
    typedef Real Vector __attribute__((vector_size(kVectorBytes)));
    static constexpr int kLanes = kVectorBytes / sizeof(Real);

    static Vector load(const Real* x) {
        Vector v;
        std::memcpy(&v, x, sizeof v);
        return v;
    }

    static void store(Real* x, Vector v) { std::memcpy(x, &v, sizeof v); }

    template <Into kInto>
    static Vector into(Vector sum, Vector before) {
        if constexpr (kInto == Into::kAdd) return before + sum;
        if constexpr (kInto == Into::kSubtract) return before - sum;
        return sum;
    }

    // c [kRows, kVectors vectors] from a [kRows, k] b.
    template <Into kInto, int kRows, int kVectors>
    static void tile(int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c, int64_t ldc) {
        Vector sums[kRows][kVectors] = {};
        for (int64_t j = 0; j < k; ++j) {
            Vector of_b[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) of_b[v] = load(b + j * ldb + v * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const Real factor = a[r * lda + j];
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * of_b[v];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                Real* const target = c + r * ldc + v * kLanes;
                store(target, into<kInto>(sums[r][v], kInto == Into::kReplace ? sums[r][v] : load(target)));
            }
        }
    }

    template <Into kInto, int kVectors>
    static void strip(int64_t m, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c,
                      int64_t ldc) {
        int64_t row = 0;
        for (; row + kTileRows <= m; row += kTileRows)
            tile<kInto, kTileRows, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
        for (; row + 2 <= m; row += 2) tile<kInto, 2, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
        if (row < m) tile<kInto, 1, kVectors>(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc);
    }

    // All columns, fewer than a vector: b is read entry by entry, so that nothing beyond it is touched.
    template <Into kInto>
    static void last_columns(int64_t m, int64_t n, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb,
                             Real* c, int64_t ldc) {
        for (int64_t row = 0; row < m; ++row) {
            Vector sum = {};
            for (int64_t j = 0; j < k; ++j) {
                Vector of_b = {};
                std::memcpy(&of_b, b + j * ldb, static_cast<size_t>(n) * sizeof(Real));
                sum += a[row * lda + j] * of_b;
            }
            Vector before = {};
            if constexpr (kInto != Into::kReplace)
                std::memcpy(&before, c + row * ldc, static_cast<size_t>(n) * sizeof(Real));
            sum = into<kInto>(sum, before);
            std::memcpy(c + row * ldc, &sum, static_cast<size_t>(n) * sizeof(Real));
        }
    }

    // The last columns, fewer than a vector, of at least one: as the last ones of a whole vector, whose first `skipped`
    // have been formed.
    template <Into kInto>
    static void end_of_vector(int64_t m, int64_t skipped, int64_t k, const Real* a, int64_t lda, const Real* b,
                              int64_t ldb, Real* c, int64_t ldc) {
        if constexpr (kInto == Into::kReplace) {
            strip<kInto, 1>(m, k, a, lda, b, ldb, c, ldc);  // the same numbers once more
            return;
        }
        Real sums[kTileRows * kLanes];
        for (int64_t begin = 0; begin < m; begin += kTileRows) {
            const int64_t rows = m - begin < kTileRows ? m - begin : kTileRows;
            strip<Into::kReplace, 1>(rows, k, a + begin * lda, lda, b, ldb, sums, kLanes);
            for (int64_t row = 0; row < rows; ++row) {
                Real* const target = c + (begin + row) * ldc;
                for (int64_t j = skipped; j < kLanes; ++j) {
                    const Real sum = sums[row * kLanes + j];
                    target[j] = kInto == Into::kAdd ? target[j] + sum : target[j] - sum;
                }
            }
        }
    }

    template <Into kInto>
    static void product(int64_t m, int64_t n, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb,
                        Real* c, int64_t ldc) {
        int64_t column = 0;
        for (; column + kTileVectors * kLanes <= n; column += kTileVectors * kLanes) {
            strip<kInto, kTileVectors>(m, k, a, lda, b + column, ldb, c + column, ldc);
        }
        for (; column + kLanes <= n; column += kLanes) strip<kInto, 1>(m, k, a, lda, b + column, ldb, c + column, ldc);
        if (column == n) return;
        if (n < kLanes) return last_columns<kInto>(m, n, k, a, lda, b, ldb, c, ldc);
        const int64_t last = n - kLanes;
        end_of_vector<kInto>(m, column - last, k, a, lda, b + last, ldb, c + last, ldc);
    }

    // Without its sign, a number is as large as its bits are as an integer, and those vectorise.
    static Real largest(const Real* x, int64_t size) {
        using Bits = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
        Bits most = 0;
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < size; ++j) {
            Bits bits;
            std::memcpy(&bits, x + j, sizeof bits);
            bits &= std::numeric_limits<Bits>::max();
            most = bits > most ? bits : most;
        }
        Real found;
        std::memcpy(&found, &most, sizeof found);
        return found;
    }

    static void add_scaled(Real* y, const Real* x, Real factor, int64_t size) {
#pragma omp simd
        for (int64_t j = 0; j < size; ++j) y[j] += factor * x[j];
    }

    static void scale(Real* y, Real factor, int64_t size) {
#pragma omp simd
        for (int64_t j = 0; j < size; ++j) y[j] *= factor;
    }

    template <int kShifts>
    static void shifted_products(int64_t count, const Real* x, const Real* y, int64_t step, Real* sums) {
        for (int64_t lane = 0; lane < kGroup; lane += kLanes) {
            Vector total[kShifts] = {};
            for (int64_t j = 0; j < count; ++j) {
                const Vector of_x = load(x + j * kGroup + lane);
#pragma GCC unroll 8
                for (int i = 0; i < kShifts; ++i) total[i] += of_x * load(y + (j + i * step) * kGroup + lane);
            }
#pragma GCC unroll 8
            for (int i = 0; i < kShifts; ++i) {
                Real* const target = sums + i * kGroup + lane;
                store(target, load(target) + total[i]);
            }
        }
    }

    static void lane_products(int64_t count, int64_t shifts, const Real* x, const Real* y, int64_t step, Real* sums) {
        int64_t i = 0;
        for (; i + 8 <= shifts; i += 8) shifted_products<8>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
        for (; i + 4 <= shifts; i += 4) shifted_products<4>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
        for (; i < shifts; ++i) shifted_products<1>(count, x, y + i * step * kGroup, step, sums + i * kGroup);
    }
};

template <typename Real>
constexpr ProductTable<Real> table() {
    using Loops = Products<Real>;
    return {&Loops::template product<Into::kReplace>,
            &Loops::template product<Into::kAdd>,
            &Loops::template product<Into::kSubtract>,
            &dot<Real>,
            &Loops::largest,
            &Loops::add_scaled,
            &Loops::scale,
            &Loops::lane_products};
}

}  // namespace of_products
}  // namespace
}  // namespace lnb
