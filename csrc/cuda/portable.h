// The one header through which kernels reach CUDA. Kernels keep to what the tests' simulator of CUDA (tests/cusim)
// provides, so that the same sources run on a CPU.
#pragma once

#ifdef LNB_CUSIM
#include "simulator.h"
#else

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#define LNB_UNROLL _Pragma("unroll")
#define LNB_ROLLED _Pragma("unroll 1")
// A large kernel parameter that blocks read in place, from constant memory.
#define LNB_PARAMETER(Struct) const __grid_constant__ Struct
// An array that the threads of a block share.
#define LNB_SHARED(T, name, count) __shared__ T name[count]
// The array whose size the launch gives, aligned as fragments of matrices need it.
#define LNB_DYNAMIC_SHARED(T, name)                         \
    extern __shared__ __align__(32) unsigned char memory[]; \
    T* const name = reinterpret_cast<T*>(memory)

namespace lnb::cuda {

// Every access to tensors goes through these: the simulator counts their bytes.
template <typename T>
__device__ __forceinline__ T read(const T* address) {
    return *address;
}
template <typename T>
__device__ __forceinline__ void write(T* address, const T& value) {
    *address = value;
}
// What another block of this launch may have written, of 16 bytes: the first-level cache may hold what was there
// before.
template <typename T>
__device__ __forceinline__ T read_fresh(const T* address) {
    static_assert(sizeof(T) == 16 && alignof(T) == 16);
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(address));
    T value;
    memcpy(&value, &words, sizeof value);
    return value;
}
// The same of 16 bytes in one access, where the compiler would take them apart.
template <typename T>
__device__ __forceinline__ void write_whole(T* address, const T& value) {
    static_assert(sizeof(T) == 16 && alignof(T) == 16);
    uint32_t words[4];
    memcpy(words, &value, sizeof words);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}

}  // namespace lnb::cuda

#endif
