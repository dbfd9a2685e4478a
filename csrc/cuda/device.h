// The device on which calls operate.
#pragma once

#include <cstddef>
#include <string>

namespace lnb::cuda {

// Makes a device the current one. At the end the thread has the context again that it had, or none: no device gets a
// context but the one in use.
class OnDevice {
  public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    void* former_;  // context
};

// Why the kernels cannot run on this device; empty if they can.
std::string failure(int device);

// The most shared memory that one thread block can have, in bytes.
size_t shared_memory(int device);

// The version of the CUDA runtime inside this module, as 1000 * major + 10 * minor.
int runtime_version();

}  // namespace lnb::cuda
