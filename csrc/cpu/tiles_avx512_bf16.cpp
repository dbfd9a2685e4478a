#include "tiles_avx512.h"

namespace lnb {
namespace {

// As Vectors, with a pair of bfloat16 in each lane.
struct PairVectors : Vectors {
    using Step = __m512bh;

    static Step load(const char* at) { return reinterpret_cast<Step>(_mm512_loadu_si512(at)); }
    static Step broadcast(const char* at) { return reinterpret_cast<Step>(_mm512_set1_epi32(*entry<int32_t>(at, 0))); }
    static void add(Sum& sum, Step x, Step y) { sum = _mm512_dpbf16_ps(sum, x, y); }
};

}  // namespace

const Tiles avx512_bf16_tiles = LNB_TILES(&multiply<Vectors>, &multiply<PairVectors>);

}  // namespace lnb
