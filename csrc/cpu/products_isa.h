// Products of small row-major matrices; isa_loops.h has a table of them per instruction set.
#pragma once

#include <cstdint>

namespace lnb {

template <typename Real>
struct ProductTable {
    // c [m, n] = a [m, k] b [k, n]; rows lie lda, ldb and ldc entries apart. c overlaps neither a nor b.
    void (*multiply)(int64_t m, int64_t n, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c,
                     int64_t ldc);
    // c += a b.
    void (*add)(int64_t m, int64_t n, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c,
                int64_t ldc);
    // c -= a b.
    void (*subtract)(int64_t m, int64_t n, int64_t k, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c,
                     int64_t ldc);
    double (*dot)(const Real* x, const Real* y, int64_t size);
    Real (*largest)(const Real* x, int64_t size);  // absolute entry; 0 for none, NaN if one is NaN
    void (*add_scaled)(Real* y, const Real* x, Real factor, int64_t size);  // y += factor x
    void (*scale)(Real* y, Real factor, int64_t size);
    // sums[i][16] += the sum over j < count of x[j][16] y[j + i step][16], entry by entry, for i < shifts.
    void (*lane_products)(int64_t count, int64_t shifts, const Real* x, const Real* y, int64_t step, Real* sums);
};

using ProductLoops = ProductTable<float>;
using WideProductLoops = ProductTable<double>;

}  // namespace lnb
