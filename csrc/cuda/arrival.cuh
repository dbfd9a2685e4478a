// The last thread block of several to arrive: how one launch adds up what its blocks left in memory.
//
// Blocks never wait for one another. Who finds that all others were there before sees what they wrote, and sets the
// counter back to zero, so that counters are zeroed once and serve every later launch of the stream.
#pragma once

#include "portable.h"

namespace lnb::cuda {

// Whether this block is the last of `blocks` at `counter`, in all of its threads. What others have written before they
// arrived is then read by read_fresh().
__device__ __forceinline__ bool last_to_arrive(int* counter, int blocks) {
    LNB_SHARED(int, last, 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last[0] = atomicAdd(counter, 1) == blocks - 1;
        if (last[0]) write(counter, 0);
    }
    __syncthreads();
    __threadfence();
    return last[0] != 0;
}

}  // namespace lnb::cuda
