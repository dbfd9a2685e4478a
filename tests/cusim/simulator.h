// Runs CUDA kernels on a CPU, for tests: csrc/cuda/portable.h includes it in place of the CUDA headers.
//
// Each CUDA thread is a fiber (ucontext) that runs until it has to wait for others; blocks run one after the other.
// What it makes visible:
//   * missing barriers: threads start in forward, reverse or random order, and blocks likewise; one order hides them
//   * barriers that not all threads of a block reach, and warp functions that not all named lanes call
//   * reads of shared memory before it is written: it is NaN (all bits set), fresh for every block
//   * accesses out of bounds, under -fsanitize=address: shared arrays are heap blocks of exactly their size
//   * misaligned vector accesses, under -fsanitize=undefined
//   * the bytes that kernels read and write, and the launches they make
// Tensor cores are in mma.h, with checks of their own.
// What it does not show: races between blocks, memory-model effects, speed, and the GPU's own conversions to 16-bit
// types (the CPU kernels' ones stand in).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};

namespace simulator {

struct Thread;

// The calling thread's indices.
const uint3& thread_index();
const uint3& block_index();
const uint3& block_dim();

// Wait until all threads of the block have called it. `line` identifies the call.
void block_barrier(int line);

// Gives `value` to the warp's other lanes and returns that of lane `source`, when all lanes in `mask` have called it.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source);

// For functions that a whole warp computes together. Each lane gives `own` and waits; the last of the 32 to arrive gets
// true and what all gave, and lets the others go on by release_warp(). `kind` tells functions apart.
bool last_of_warp(const void* kind, void* own, void* (&all)[32]);
void release_warp();

// Ends the launch with a complaint about the calling thread.
void fail(const char* complaint);

// The block's array that the declaration `key` stands for, of poisoned memory.
void* shared_array(const void* key, size_t bytes);
void* dynamic_shared_array();

// Runs `body` for every thread of every block. Throws std::runtime_error for what the header comment lists.
void launch(const char* name, unsigned blocks, int threads, size_t shared_bytes, const std::function<void()>& body);

// Memory traffic of kernels.
void count_read(size_t bytes);
void count_written(size_t bytes);

// Makes a device current, with a context if it has none yet; false if there is no such device.
bool set_device(int device);

// A function of the driver: cuCtxGetCurrent or cuCtxSetCurrent, else null.
void* driver_function(const char* name);

// The error of the last launch, as cudaGetLastError gives it: of one that the test has made fail.
int last_error();

}  // namespace simulator

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::simulator::thread_index())
#define blockIdx (::simulator::block_index())
#define blockDim (::simulator::block_dim())
#define __syncthreads() ::simulator::block_barrier(__LINE__)

#define LNB_UNROLL
#define LNB_ROLLED
#define LNB_PARAMETER(Struct) const Struct&
#define LNB_SHARED(T, name, count)    \
    static const char name##_key = 0; \
    T* const name = static_cast<T*>(::simulator::shared_array(&name##_key, sizeof(T) * (count)))
#define LNB_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::simulator::dynamic_shared_array())

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = simulator::exchange(mask, bits, threadIdx.x % 32 ^ distance);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void __syncwarp() {
    simulator::exchange(0xffffffffu, 0, threadIdx.x % 32);
}

// Blocks run one after the other, in an order that tests choose.
inline void __threadfence() {}
inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}

// The part of the CUDA runtime that the launchers call.
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

inline cudaError_t cudaGetLastError() {
    return simulator::last_error();
}
inline const char* cudaGetErrorString(cudaError_t) {
    return "simulated failure";
}
// Devices get a context when they are first worked on; the runtime works on that of the thread's current one.
inline cudaError_t cudaSetDevice(int device) {
    return simulator::set_device(device) ? cudaSuccess : 101;  // cudaErrorInvalidDevice
}
constexpr unsigned long long cudaEnableDefault = 0;
inline cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long, void*) {
    *function = simulator::driver_function(name);
    return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 227 * 1024;
    return cudaSuccess;
}
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}
constexpr int CUDART_VERSION = 0;

namespace lnb::cuda {

template <typename T>
T read(const T* address) {
    simulator::count_read(sizeof(T));
    return *address;
}
template <typename T>
void write(T* address, const T& value) {
    simulator::count_written(sizeof(T));
    *address = value;
}
template <typename T>
T read_fresh(const T* address) {
    return read(address);
}
template <typename T>
void write_whole(T* address, const T& value) {
    write(address, value);
}

}  // namespace lnb::cuda
