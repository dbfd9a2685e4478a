// The loops over one row, one table of them per instruction set.
#pragma once

#include <cstdint>

namespace lnb {

struct CgRow {
    const float *g, *mu, *var, *ap;
    float *h, *r, *p;
    int64_t columns, d;
};

struct CgLoops {
    void (*start)(const CgRow& row, double* gg, double* rr, double* rz);
    double (*product)(const CgRow& row);  // <p, A p>
    void (*move)(const CgRow& row, float alpha, double* rr, double* rz);
    void (*direction)(const CgRow& row, float beta);
};

extern const CgLoops portable_cg_loops;
#ifdef LNB_X86
extern const CgLoops avx2_cg_loops;
extern const CgLoops avx512_cg_loops;
#endif

}  // namespace lnb
