// The loops themselves. Included once by each cg_vectors_<isa>.cpp, which is compiled for that instruction set; all
// names are local to the file, so that the linker cannot merge code of different instruction sets. `omp simd` is a
// promise to the vectoriser only.

#include "cg_vectors_isa.h"

namespace lnb {
namespace {

double square(const float* x, int64_t size) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += static_cast<double>(x[j]) * static_cast<double>(x[j]);
    return sum;
}

// Writes P r + beta p to p (P r alone for `kFresh`), and returns <r, P r>.
template <bool kFresh>
double precondition(const CgRow& row, float beta) {
    const float* r = row.r;
    float* p = row.p;
    const auto put = [=](int64_t j, float z) { p[j] = kFresh ? z : z + beta * p[j]; };
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

// <r, P r> alone.
double preconditioned_square(const CgRow& row) {
    const float* r = row.r;
    if (row.mu == nullptr) return square(r, row.columns);
    const float *mu = row.mu, *var = row.var;
    double rz = 0;
    if (row.columns == row.d) {
#pragma omp simd reduction(+ : rz)
        for (int64_t j = 0; j < row.d; ++j) {
            rz += static_cast<double>(r[j]) * static_cast<double>(r[j] / (var[j] + mu[j] * mu[j]));
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
    }
    return rz + static_cast<double>(b) * static_cast<double>(static_cast<float>(b - mu_z));
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
    *gg = square(g, row.columns);
    *rr = square(r, row.columns);
    *rz = precondition<true>(row, 0);
}

double product(const CgRow& row) {
    const float *p = row.p, *ap = row.ap;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < row.columns; ++j) sum += static_cast<double>(p[j]) * static_cast<double>(ap[j]);
    return sum;
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
    *rz = preconditioned_square(row);
}

void direction(const CgRow& row, float beta) {
    precondition<false>(row, beta);
}

#define LNB_CG_LOOPS {&start, &product, &move, &direction}

}  // namespace
}  // namespace lnb
