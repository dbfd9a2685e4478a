// Starting kernels, with an exception that names the kernel where that fails. For .cu files.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "portable.h"

namespace lnb::cuda {

struct Geometry {
    int64_t blocks;
    int threads;
    size_t shared_bytes = 0;
};

inline void require(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error) + " (CUDA error " +
                                 std::to_string(static_cast<int>(error)) + ")");
    }
}

// Queue kernel(arguments...) on the stream. An error is one of this launch, or of work before it on the device.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Geometry& geometry, [[maybe_unused]] void* stream,
            const Arguments&... arguments) {
    if (geometry.blocks == 0) return;
    if (geometry.blocks > INT32_MAX) {  // all are in the first dimension, the only one that takes more than 65,535
        throw std::invalid_argument(std::string(name) + " would need " + std::to_string(geometry.blocks) +
                                    " blocks; a launch takes at most " + std::to_string(INT32_MAX));
    }
#ifdef LNB_CUSIM
    simulator::launch(name, static_cast<unsigned>(geometry.blocks), geometry.threads, geometry.shared_bytes,
                      [&] { kernel(arguments...); });
#else
    if (geometry.shared_bytes > 48 * 1024) {  // more has to be asked for
        require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(geometry.shared_bytes)),
                name);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = static_cast<unsigned>(geometry.blocks);
    config.blockDim = static_cast<unsigned>(geometry.threads);
    config.dynamicSmemBytes = geometry.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    require(cudaLaunchKernelEx(&config, kernel, arguments...), name);
#endif
    require(cudaGetLastError(), name);
}

}  // namespace lnb::cuda
