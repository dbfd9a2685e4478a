#include "device.h"
#include "launch.h"

namespace lnb::cuda {
namespace {

// Loads if and only if this module has code that the device runs: all kernels are compiled for the same architectures.
__global__ void probe_kernel() {}

int current_device() {
    int device = 0;
    require(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

}  // namespace

OnDevice::OnDevice(int device) : former_(current_device()), changed_(former_ != device) {
    if (changed_) require(cudaSetDevice(device), "cudaSetDevice");
}

OnDevice::~OnDevice() {
    if (changed_) cudaSetDevice(former_);
}

std::string failure(int device) {
    try {
        const OnDevice on(device);
        cudaFuncAttributes attributes;
        require(cudaFuncGetAttributes(&attributes, probe_kernel), "loading the CUDA kernels");
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

size_t shared_memory(int device) {
    int bytes = 0;
    require(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
    return static_cast<size_t>(bytes);
}

int runtime_version() {
    return CUDART_VERSION;
}

}  // namespace lnb::cuda
