// Kernels with one fault each, that the simulator must find; and one that is right.
#include <cstring>
#include <exception>
#include <string>

#include "cuda/launch.h"
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
    };
    static std::string complaint;
    complaint = "no such kernel";
    for (const auto& [name, function] : kernels) {
        if (std::strcmp(name, kernel) != 0) continue;
        try {
            launch(name, function, {1, 64, 63 * sizeof(int)}, nullptr, out);
            complaint = "";
        } catch (const std::exception& error) {
            complaint = error.what();
        }
    }
    return complaint.c_str();
}
