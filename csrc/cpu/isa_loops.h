// All loops of one instruction set.
#pragma once

#include "cg_vectors_isa.h"
#include "multi_tensor_isa.h"
#include "products_isa.h"
#include "tiles.h"

namespace lnb {

struct IsaLoops {
    Loops pairs;
    Tiles tiles;
    CgLoops cg;
    ProductLoops products;
    WideProductLoops wide_products;
};

// Each is defined by isa_loops.cpp, compiled for that instruction set.
extern const IsaLoops portable_loops;
#ifdef LNB_X86
extern const IsaLoops avx2_loops, avx512_loops;
#endif
#ifdef LNB_AVX512_BF16
extern const Tiles avx512_bf16_tiles;  // beside the loops of AVX-512
#endif

}  // namespace lnb
