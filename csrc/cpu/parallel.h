// Threads for the CPU kernels, without a pool that spins next to torch's.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lnb {

// Calls body(context, part) once for every part in [0, parts), on at most `threads` threads, and returns when all calls
// have returned. Parts are taken in increasing order as threads become free. `body` must not throw.
//
// The threads are torch's own OpenMP team where that runtime is in the process: after a torch op its threads still spin
// for milliseconds, and any other thread would compete with them for the cores. Otherwise, and in a forked child (where
// an inherited OpenMP team hangs), a pool of sleeping threads serves.
void parallel_for(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context);

// The same for a function object: f(part).
template <typename F>
void parallel_for(int64_t parts, int threads, F f) {
    parallel_for(parts, threads, [](void* context, int64_t part) { (*static_cast<F*>(context))(part); }, &f);
}

// How many of `threads` threads are worth waking for this many multiplications and additions of products. To wake one
// takes tens of microseconds, in which another makes about a million of these.
inline int threads_for(double products, int threads) {
    constexpr double kLeast = 0x1p20;  // of a thread
    return static_cast<int>(std::clamp(products / kLeast, 1.0, static_cast<double>(std::max(threads, 1))));
}

// What an entry that is read from memory counts as.
constexpr double kProductsPerEntry = 16;

// "openmp", or "pool": which threads parallel_for uses in this process.
const char* threading();

}  // namespace lnb
