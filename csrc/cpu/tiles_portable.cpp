#include "tiles_loops.h"

namespace lnb {
namespace {

// Four floats at a time: what every CPU's vectors hold at least, and what compilers turn them into.
struct Vectors {
    static constexpr int kLanes = 4, kRows = 2, kBlocks = 1;
    struct Sum {
        float lanes[kLanes];
    };
    using Step = Sum;

    static Sum zero() { return {}; }
    static Step load(const char* at) {
        Step step;
        std::memcpy(&step, at, sizeof step);
        return step;
    }
    static Step broadcast(const char* at) {
        const float x = *entry<float>(at, 0);
        return {{x, x, x, x}};
    }
    static void add(Sum& sum, const Step& x, const Step& y) {
        for (int i = 0; i < kLanes; ++i) sum.lanes[i] += x.lanes[i] * y.lanes[i];
    }
    static void accumulate(float* c, const Sum& sum) {
        for (int i = 0; i < kLanes; ++i) c[i] += sum.lanes[i];
    }
};

}  // namespace

const Tiles portable_tiles = LNB_TILES(&multiply<Vectors>, nullptr);

}  // namespace lnb
