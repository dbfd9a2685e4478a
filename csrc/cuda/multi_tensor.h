// Whole-model updates on the GPU: each call queues work on a stream and returns; the host never waits for the device.
//
// Launches per call: one for every kTensors tensors. All offsets are 64-bit. Sums are the same bits in every run.
// A call throws std::runtime_error, naming the kernel, where a launch fails.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb::cuda {

constexpr int kTensors = 320;         // of one launch
constexpr int64_t kPieceSize = 8192;  // elements of one block's work: enough to keep 256 threads' loads in flight

// How many blocks work on a tensor of this size, and how many partial sums it has.
constexpr int64_t pieces(int64_t size) {
    return (size + kPieceSize - 1) / kPieceSize;
}

// Two dense tensors of one shape and memory order, and a third that ema_combined and apply_master write. `x` is written
// by ema_combined and apply; memory that is written overlaps nothing else of the call. `slot` is the place of what
// belongs to the pair: of its factor in `scales` or `shares`, or of the first of its pieces(size) partial sums.
struct Pair {
    void* x;
    const void* y;
    void* copy;
    int64_t size;
    int64_t slot;
};

// A number: `value`, or what is stored at `device` when the kernel runs.
struct Scalar {
    double value;
    const void* device;  // or null
    Type type;           // of what is at `device`
};

// Whether the functions below take `x` and `y` of these types: both float64; else float32, bfloat16 and float16, but
// not the two 16-bit types together.
bool supported(Type x, Type y);

// x <- beta x + (1 - beta) y, if ok is null or *ok; and copy <- shares[slot] x + take y of x as it is afterwards;
// without the term of y where take is 0. x and copy are float32 or float64.
void ema_combined(const Pair* pairs, int64_t count, Type x, Type y, double beta, const void* shares, Type share_type,
                  double take, const bool* ok, void* stream);
bool combines(Type x, Type y);  // whether it takes these types

// Partial sums of x * y.
void dot(const Pair* pairs, int64_t count, Type x, Type y, double* partials, void* stream);

// out[i] <- sum of partials[first[i]] ... partials[first[i + 1] - 1].
void segment_sums(const int64_t* first, int64_t count, const double* partials, double* out, void* stream);

// x <- x - lr (scales[slot] y + decay x), if ok is null or *ok. Where lr scales[slot] is 0, y may hold NaN.
void apply(const Pair* pairs, int64_t count, Type x, Type y, const void* scales, Type scale_type, const Scalar& lr,
           const Scalar& decay, const bool* ok, void* stream);

// The same on float32 master weights `x`, whose new values are also rounded into the 16-bit parameters `copy`. `y` is
// of type `copy_type` or float32.
void apply_master(const Pair* pairs, int64_t count, Type copy_type, Type y, const void* scales, Type scale_type,
                  const Scalar& lr, const Scalar& decay, const bool* ok, void* stream);

// *finite <- false, if an entry of an x is NaN or infinite; else nothing is written. y is not read.
void all_finite(const Pair* pairs, int64_t count, Type x, bool* finite, void* stream);

}  // namespace lnb::cuda
