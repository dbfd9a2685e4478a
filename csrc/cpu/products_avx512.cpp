#include <cstdint>

namespace lnb {
namespace {
constexpr int kLanes = 16, kTileRows = 8, kTileVectors = 3;
}
}  // namespace lnb

#include "products_loops.h"

namespace lnb {
const ProductLoops avx512_product_loops = LNB_PRODUCT_LOOPS;
}
