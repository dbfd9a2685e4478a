#include "multi_tensor_loops.h"

namespace lnb {
const Loops avx2_loops = LNB_LOOPS;
}
