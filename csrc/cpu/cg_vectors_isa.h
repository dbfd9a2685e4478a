// The loops over one row; isa_loops.h has a table of them per instruction set.
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

}  // namespace lnb
