// Kernels with one fault each, that the simulator must find; and one that is right.
#include <cstring>
#include <exception>
#include <string>

#include "cuda/launch.h"
#include "cuda/matrix_units.cuh"
#include "cuda/reduce.cuh"

namespace {

using lnb::cuda::launch;

__global__ void right(int* out) {
    LNB_SHARED(int, values, 64);
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void without_barrier(int* out) {
    LNB_SHARED(int, values, 64);
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void reads_before_writing(int* out) {
    LNB_SHARED(int, values, 64);
    if (threadIdx.x > 0) values[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void two_barriers(int*) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void barrier_that_some_leave_out(int*) {
    if (threadIdx.x < 32) return;
    __syncthreads();
}

__global__ void warp_sum_that_some_leave_out(int* out) {
    if (threadIdx.x % 2 == 0) out[threadIdx.x] = lnb::cuda::warp_sum(1);
}

__global__ void beyond_global_memory(int* out) {
    out[threadIdx.x + 1] = 0;
}

__global__ void beyond_shared_memory(int* out) {
    LNB_SHARED(int, values, 63);
    values[threadIdx.x] = 0;
    out[threadIdx.x] = values[0];
}

__global__ void beyond_dynamic_memory(int* out) {
    LNB_DYNAMIC_SHARED(int, values);  // of 63 ints
    values[threadIdx.x] = 0;
    out[threadIdx.x] = values[0];
}

struct alignas(16) Four {
    int value[4];
};

__global__ void misaligned(int* out) {
    if (threadIdx.x == 0) reinterpret_cast<Four*>(out + 1)->value[0] = 0;
}

// out <- 2^7 times the sums of a product of tiles whose entries are `entry` and 1.
void multiply_tiles(int* out, float entry, int shift = 0, bool together = true, bool by_all = true) {
    using lnb::cuda::Tf32;
    LNB_DYNAMIC_SHARED(float, tiles);
    float *const left = tiles, *const right = tiles + 160, *const sums = tiles + 320;
    for (int i = threadIdx.x; i < 160; i += 64) {
        left[i] = entry;
        right[i] = 1;
    }
    __syncthreads();
    if (threadIdx.x < (by_all ? 32 : 31)) {
        Tf32::Left of_left;
        Tf32::Right of_right;
        Tf32::Sums of_sums;
        nvcuda::wmma::fill_fragment(of_sums, 0.0f);
        Tf32::load(of_left, left + (together ? shift : 8 * threadIdx.x % 16), 8);
        Tf32::load(of_right, right, 16);
        Tf32::add_product(of_sums, of_left, of_right);
        nvcuda::wmma::store_matrix_sync(sums, of_sums, 16, nvcuda::wmma::mem_row_major);
    }
    __syncthreads();
    out[threadIdx.x] = static_cast<int>(128 * sums[4 * threadIdx.x]);
}

constexpr float kHalfABit = 1 + 0x1p-11f;  // of TF32, above 1

__global__ void rounded_tiles(int* out) {
    multiply_tiles(out, lnb::cuda::Tf32::narrow(kHalfABit));
}

__global__ void unrounded_tiles(int* out) {
    multiply_tiles(out, kHalfABit);
}

__global__ void misaligned_tile(int* out) {
    multiply_tiles(out, 1, 4);
}

__global__ void tiles_that_differ(int* out) {
    multiply_tiles(out, 1, 0, false);
}

__global__ void tiles_that_some_leave_out(int* out) {
    multiply_tiles(out, 1, 0, true, false);
}

}  // namespace

// Runs a kernel on `out` [64]; returns the simulator's complaint, or an empty string.
extern "C" __attribute__((visibility("default"))) const char* run(const char* kernel, int* out) {
    static const struct {
        const char* name;
        void (*function)(int*);
    } kernels[] = {
        {"right", right},
        {"without_barrier", without_barrier},
        {"reads_before_writing", reads_before_writing},
        {"two_barriers", two_barriers},
        {"barrier_that_some_leave_out", barrier_that_some_leave_out},
        {"warp_sum_that_some_leave_out", warp_sum_that_some_leave_out},
        {"beyond_global_memory", beyond_global_memory},
        {"beyond_shared_memory", beyond_shared_memory},
        {"beyond_dynamic_memory", beyond_dynamic_memory},
        {"misaligned", misaligned},
        {"rounded_tiles", rounded_tiles},
        {"unrounded_tiles", unrounded_tiles},
        {"misaligned_tile", misaligned_tile},
        {"tiles_that_differ", tiles_that_differ},
        {"tiles_that_some_leave_out", tiles_that_some_leave_out},
    };
    static std::string complaint;
    complaint = "no such kernel";
    for (const auto& [name, function] : kernels) {
        if (std::strcmp(name, kernel) != 0) continue;
        try {
            const bool tiles = std::strstr(name, "tile") != nullptr;
            launch(name, function, {1, 64, (tiles ? 576 : 63) * sizeof(int)}, nullptr, out);
            complaint = "";
        } catch (const std::exception& error) {
            complaint = error.what();
        }
    }
    return complaint.c_str();
}
