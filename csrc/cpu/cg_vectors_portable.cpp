#include "cg_vectors_loops.h"

namespace lnb {
const CgLoops portable_cg_loops = LNB_CG_LOOPS;
}
