// The instruction sets that this build has: one table of kernels each, chosen at run time.
#pragma once

namespace lnb {

struct CgLoops;
struct Loops;
template <typename Real>
struct ProductTable;
struct Tiles;

struct Isa {
    const char* name;
    const Loops* loops;
    const Tiles* tiles;
    const CgLoops* cg_loops;
    const ProductTable<float>* product_loops;
    const ProductTable<double>* wide_product_loops;
    bool (*runs_here)();
};

// The instruction set in use: the best that this CPU runs, unless select_isa chose another.
const Isa& isa();

// Those that this CPU runs, best first. `select_isa` returns false for a name not among them.
constexpr int kMaxIsas = 4;
int available_isas(const char* names[kMaxIsas]);
bool select_isa(const char* name);

}  // namespace lnb
