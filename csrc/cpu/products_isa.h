// Products of small row-major matrices, one table of them per instruction set.
#pragma once

#include <cstdint>

namespace lnb {

struct ProductLoops {
    // c [m, n] = a [m, k] b [k, n]; rows lie lda, ldb and ldc entries apart. c overlaps neither a nor b.
    void (*multiply)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc);
    // c += a b.
    void (*add)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                int64_t ldc);
    // c -= a b.
    void (*subtract)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc);
    double (*dot)(const float* x, const float* y, int64_t size);
    float (*largest)(const float* x, int64_t size);  // absolute entry; 0 for none, NaN if one is NaN
    void (*add_scaled)(float* y, const float* x, float factor, int64_t size);  // y += factor x
    void (*scale)(float* y, float factor, int64_t size);
    // sums[i][16] += the sum over j < count of x[j][16] y[j + i step][16], entry by entry, for i < shifts.
    void (*lane_products)(int64_t count, int64_t shifts, const float* x, const float* y, int64_t step, float* sums);
};

extern const ProductLoops portable_product_loops;
#ifdef LNB_X86
extern const ProductLoops avx2_product_loops;
extern const ProductLoops avx512_product_loops;
#endif

}  // namespace lnb
