// The device that calls work on.
#pragma once

#include <cstddef>
#include <string>

namespace lnb::cuda {

// Makes a device the current one, and the former one again at the end.
class OnDevice {
  public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int former_;
    bool changed_;
};

// Why the kernels cannot run on this device; empty if they can.
std::string failure(int device);

// The most shared memory that one thread block can have, in bytes.
size_t shared_memory(int device);

// Of the CUDA runtime inside this module, as 1000 * major + 10 * minor.
int runtime_version();

}  // namespace lnb::cuda
