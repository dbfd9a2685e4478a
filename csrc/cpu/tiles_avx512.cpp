#include "tiles_avx512.h"

namespace lnb {
const Tiles avx512_tiles = LNB_TILES(&multiply<Vectors>, nullptr);
}
