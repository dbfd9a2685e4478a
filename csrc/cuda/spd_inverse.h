// Inverses of symmetric positive definite matrices of one size on the GPU, one thread block each.
#pragma once

#include <cstdint>

namespace lnb::cuda {

// inverses[i] <- matrices[i]^-1, for sides up to 144, in one launch; only lower triangles are read. failed[i] says that
// a matrix is not positive definite in float32, or not finite: its inverse is then not written.
void spd_inverses(const float* matrices, float* inverses, bool* failed, int64_t count, int side, void* stream);

}  // namespace lnb::cuda
