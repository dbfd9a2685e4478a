// A loop that several tables of kernels share. Included by their loops, in a file that is compiled for each instruction
// set; local to the file, so that the linker cannot merge code of different sets.
#pragma once

#include <cstdint>

namespace lnb {
namespace {

// <x, y>, summed in double.
template <typename Real>
double dot(const Real* x, const Real* y, int64_t size) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += static_cast<double>(x[j]) * static_cast<double>(y[j]);
    return sum;
}

}  // namespace
}  // namespace lnb
