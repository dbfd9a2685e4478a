#include <cstdint>

namespace lnb {
namespace {
constexpr int kLanes = 8, kTileRows = 6, kTileVectors = 2;
}
}  // namespace lnb

#include "products_loops.h"

namespace lnb {
const ProductLoops avx2_product_loops = LNB_PRODUCT_LOOPS;
}
