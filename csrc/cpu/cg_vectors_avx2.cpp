#include "cg_vectors_loops.h"

namespace lnb {
const CgLoops avx2_cg_loops = LNB_CG_LOOPS;
}
