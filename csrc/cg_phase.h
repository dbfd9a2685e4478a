// Conjugate gradients between the products with A, which are the caller's: what the CPU's and the GPU's kernels share.
//
// For every row of a right-hand side g: from h = h0, r = g - A h, z = P r, p = z, each step does alpha = <r, z> / <p, A
// p>, h += alpha p, r -= alpha A p, z = P r, beta = <r, z> / <r, z>_old, p = z + beta p. P is the arrow preconditioner:
// for a row (w, b), w1 = (w - mu b) / var and b1 = b - sum(mu w1); without a bias, w1 = w / (var + mu^2). A scope unit
// - a row, or all rows of a layer - is done where ||r|| <= stop ||g|| or <p, A p> <= 0: alpha is 0 then.
#pragma once

namespace lnb {

// Sums of every unit, or of every row before they are added up. A phase reads the sums of the units and writes those of
// its rows; these are the same where each row is a unit.
struct CgSums {
    double* gg;     // <g, g>
    double* rr[2];  // <r, r>, before and after the step
    double* rz[2];  // <r, z>, likewise
    double* pap;    // <p, A p>
};

enum class CgPhase : int {
    kStart,      // r <- g - ap (the product with h0, if there is one), p <- P r; gg, rr[1], rz[1] of rows
    kProduct,    // pap of rows
    kMove,       // h, r by alpha; rr[1], rz[1] of rows
    kDirection,  // p by beta
    kStep,       // the last three at once, where each row is a unit
};

}  // namespace lnb
