#include "device.h"
#include "launch.h"

namespace lnb::cuda {
namespace {

// Loads if and only if this module has code that the device runs: all kernels are compiled for the same architectures.
__global__ void probe_kernel() {}

// The driver's functions, without linking to it: this module also loads where there is none.
template <typename Function>
Function driver_function(const char* name) {
    void* function = nullptr;
#if CUDART_VERSION >= 12050
    constexpr unsigned kVersion = 12000;
    require(cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, nullptr), name);
#else
    require(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, nullptr), name);
#endif
    if (function == nullptr) throw std::runtime_error(std::string("the driver has no function ") + name);
    return reinterpret_cast<Function>(function);
}

// The calling thread's current context; null for none. Threads start without one.
void* current_context() {
    static const auto get = driver_function<int (*)(void**)>("cuCtxGetCurrent");
    constexpr int kNotInitialized = 3;  // nothing in the process has used the driver yet
    void* context = nullptr;
    if (const int error = get(&context); error != 0 && error != kNotInitialized) {
        throw std::runtime_error("cuCtxGetCurrent failed (CUDA error " + std::to_string(error) + ")");
    }
    return context;
}

}  // namespace

OnDevice::OnDevice(int device) : former_(current_context()) {
    require(cudaSetDevice(device), "cudaSetDevice");
}

// Not by cudaSetDevice, which makes a context on its device, some 300 MB, where the process has none.
OnDevice::~OnDevice() {
    static const auto set = driver_function<int (*)(void*)>("cuCtxSetCurrent");
    set(former_);
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
