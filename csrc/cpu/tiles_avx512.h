// Float32 products on AVX-512, for the tables with and without AVX512-BF16.

#include <immintrin.h>

#include "tiles_loops.h"

namespace lnb {
namespace {

// 32 registers: 8 x 3 sums, three columns, one entry.
struct Vectors {
    static constexpr int kLanes = 16, kRows = 8, kBlocks = 3;
    using Sum = __m512;
    using Step = __m512;

    static Sum zero() { return _mm512_setzero_ps(); }
    static Step load(const char* at) { return _mm512_loadu_ps(at); }
    static Step broadcast(const char* at) { return _mm512_set1_ps(*entry<float>(at, 0)); }
    static void add(Sum& sum, Step x, Step y) { sum = _mm512_fmadd_ps(x, y, sum); }
    static void accumulate(float* c, Sum sum) { _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), sum)); }
};

}  // namespace
}  // namespace lnb
