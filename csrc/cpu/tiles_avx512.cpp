#include "tiles_avx512.h"

namespace lnb {
const Tiles avx512_tiles = {{&multiply<Vectors>, &multiply<Vectors>, nullptr}, LNB_PACKS};
}
