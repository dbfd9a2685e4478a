// Averages of gradients, float32, and what a step takes of them.
#pragma once

#include "element.cuh"

namespace lnb::cuda {

// m <- keep m + add g, and g~ = share m + take g by the new m.
struct Averaging {
    float keep, add, take;

    __device__ __forceinline__ Averaging(double decay, double take_of_gradient)
        : keep(static_cast<float>(decay)),
          add(static_cast<float>(1.0 - decay)),
          take(static_cast<float>(take_of_gradient)) {}

    template <typename G>
    __device__ __forceinline__ float average(float old, G gradient) const {
        return keep * old + add * widen(gradient);
    }
    // Not 0 times a gradient that may be NaN.
    template <typename G>
    __device__ __forceinline__ float ahead(float average, G gradient, float share) const {
        return share * average + (take == 0 ? 0 : take * widen(gradient));
    }
};

}  // namespace lnb::cuda
