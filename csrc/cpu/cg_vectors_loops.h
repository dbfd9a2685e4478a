// Included by isa_loops.cpp, which is compiled for every instruction set; all
// names are local to the file, so that the linker cannot merge code of different instruction sets. `omp simd` is a
// promise to the vectoriser only.

#include "cg_vectors_isa.h"
#include "dot_loop.h"

namespace lnb {
namespace {
namespace of_cg {

// What becomes of P r: nothing, p, or a part of p.
enum class Then { kNothing, kStore, kAdd };

// <r, P r>; `kStore` writes P r to p, `kAdd` P r + beta p.
template <Then kThen>
double precondition(const CgRow& row, float beta = 0) {
    const float* r = row.r;
    float* p = row.p;
    const auto put = [=](int64_t j, float z) {
        if constexpr (kThen == Then::kStore) p[j] = z;
        if constexpr (kThen == Then::kAdd) p[j] = z + beta * p[j];
    };
    double rz = 0;
    if (row.mu == nullptr) {
#pragma omp simd reduction(+ : rz)
        for (int64_t j = 0; j < row.columns; ++j) {
            rz += static_cast<double>(r[j]) * static_cast<double>(r[j]);
            put(j, r[j]);
        }
        return rz;
    }
    const float *mu = row.mu, *var = row.var;
    if (row.columns == row.d) {
#pragma omp simd reduction(+ : rz)
        for (int64_t j = 0; j < row.d; ++j) {
            const float z = r[j] / (var[j] + mu[j] * mu[j]);
            rz += static_cast<double>(r[j]) * static_cast<double>(z);
            put(j, z);
        }
        return rz;
    }
    const float b = r[row.d];
    double mu_z = 0;
#pragma omp simd reduction(+ : rz, mu_z)
    for (int64_t j = 0; j < row.d; ++j) {
        const float z = (r[j] - mu[j] * b) / var[j];
        rz += static_cast<double>(r[j]) * static_cast<double>(z);
        mu_z += static_cast<double>(mu[j]) * static_cast<double>(z);
        put(j, z);
    }
    const auto last = static_cast<float>(b - mu_z);
    put(row.d, last);
    return rz + static_cast<double>(b) * static_cast<double>(last);
}

void start(const CgRow& row, double* gg, double* rr, double* rz) {
    const float *g = row.g, *ap = row.ap;
    float* r = row.r;
    if (ap == nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < row.columns; ++j) r[j] = g[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < row.columns; ++j) r[j] = g[j] - ap[j];
    }
    *gg = dot(g, g, row.columns);
    *rr = dot(r, r, row.columns);
    *rz = precondition<Then::kStore>(row);
}

double product(const CgRow& row) {
    return dot(row.p, row.ap, row.columns);
}

void move(const CgRow& row, float alpha, double* rr, double* rz) {
    const float *p = row.p, *ap = row.ap;
    float *h = row.h, *r = row.r;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < row.columns; ++j) {
        h[j] += alpha * p[j];
        r[j] -= alpha * ap[j];
        sum += static_cast<double>(r[j]) * static_cast<double>(r[j]);
    }
    *rr = sum;
    *rz = precondition<Then::kNothing>(row);
}

void direction(const CgRow& row, float beta) {
    precondition<Then::kAdd>(row, beta);
}

constexpr CgLoops kLoops{&start, &product, &move, &direction};

}  // namespace of_cg
}  // namespace
}  // namespace lnb
