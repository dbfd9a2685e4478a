#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>

#include "isa_loops.h"

namespace lnb {
namespace {

bool always() {
    return true;
}
#ifdef LNB_X86
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef LNB_AVX512_BF16
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

constexpr Isa isa_of(const char* name, const IsaLoops& loops, const Tiles& tiles, bool (*runs_here)()) {
    return {name, &loops.pairs, &tiles, &loops.cg, &loops.products, &loops.wide_products, runs_here};
}

constexpr Isa kIsas[] = {
#ifdef LNB_AVX512_BF16
    isa_of("avx512_bf16", avx512_loops, avx512_bf16_tiles, has_avx512_bf16),
#endif
#ifdef LNB_X86
    isa_of("avx512", avx512_loops, avx512_loops.tiles, has_avx512),
    isa_of("avx2", avx2_loops, avx2_loops.tiles, has_avx2),
#endif
    isa_of("portable", portable_loops, portable_loops.tiles, always),
};

const Isa* best() {
    return std::find_if(std::begin(kIsas), std::end(kIsas), [](const Isa& isa) { return isa.runs_here(); });
}

std::atomic<const Isa*>& selected() {
    static std::atomic<const Isa*> isa{best()};
    return isa;
}

}  // namespace

const Isa& isa() {
    return *selected().load();
}

Form best_form(Type type, bool round) {
    if (!round && type != Type::kBFloat16) return Form::kFloat;
    if (isa().tiles->multiply[static_cast<int>(Form::kPairs)] != nullptr) return Form::kPairs;
    return round ? Form::kRounded : Form::kFloat;
}

int available_isas(const char* names[kMaxIsas]) {
    int count = 0;
    for (const Isa& isa : kIsas) {
        if (isa.runs_here()) names[count++] = isa.name;
    }
    return count;
}

bool select_isa(const char* name) {
    for (const Isa& isa : kIsas) {
        if (std::strcmp(isa.name, name) == 0 && isa.runs_here()) {
            selected() = &isa;
            return true;
        }
    }
    return false;
}

}  // namespace lnb
