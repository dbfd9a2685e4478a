#include "multi_tensor_loops.h"

namespace lnb {
const Loops portable_loops = LNB_LOOPS;
}
