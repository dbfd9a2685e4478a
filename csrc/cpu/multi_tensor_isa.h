// The loops over one run of elements, one table of them per instruction set.
#pragma once

#include "multi_tensor.h"

namespace lnb {

struct Loops {
    // Each loop is indexed by the types of x and y. A type pair that is not supported() has a null pointer.
    // z <- share x + take y of the new x; `streamed` past the caches.
    void (*ema_combined[kTypes][kTypes])(void* x, const void* y, void* z, int64_t size, double beta, double share,
                                         double take, bool streamed);
    double (*dot[kTypes][kTypes])(const void* x, const void* y, int64_t size);
    void (*apply[kTypes][kTypes])(void* x, const void* y, int64_t size, double step, double decay);
    bool (*finite[kTypes])(const void* x, int64_t size);
    double (*adam)(float* direction, float* square, const float* gradient, int64_t size, double decay,
                   double correction, double epsilon, double most);
};

extern const Loops portable_loops;
#ifdef LNB_X86
extern const Loops avx2_loops;
extern const Loops avx512_loops;
#endif

}  // namespace lnb
