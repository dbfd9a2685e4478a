// Compiled once for every instruction set (sources.cmake), whose table has the name LNB_LOOPS.
#include "isa_loops.h"

#include "cg_vectors_loops.h"
#include "multi_tensor_loops.h"
#include "products_loops.h"
#include "tiles_vectors.h"

namespace lnb {

#ifdef __AVX512BF16__
extern const Tiles LNB_LOOPS;  // else it would be this file's own
constexpr Tiles LNB_LOOPS =
    of_tiles::tiles_of(&of_tiles::multiply<of_tiles::Vectors>, &of_tiles::multiply<of_tiles::PairVectors>);
#else
extern const IsaLoops LNB_LOOPS;
constexpr IsaLoops LNB_LOOPS = {of_pairs::kLoops, of_tiles::tiles_of(&of_tiles::multiply<of_tiles::Vectors>, nullptr),
                                of_cg::kLoops, of_products::table<float>(), of_products::table<double>()};
#endif

}  // namespace lnb
