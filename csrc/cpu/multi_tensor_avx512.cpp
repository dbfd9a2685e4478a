#include "multi_tensor_loops.h"

namespace lnb {
const Loops avx512_loops = LNB_LOOPS;
}
