#include <cstdint>

namespace lnb {
namespace {
constexpr int kLanes = 4, kTileRows = 4, kTileVectors = 2;
}
}  // namespace lnb

#include "products_loops.h"

namespace lnb {
const ProductLoops portable_product_loops = LNB_PRODUCT_LOOPS;
}
