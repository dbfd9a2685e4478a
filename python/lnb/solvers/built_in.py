"""The solvers that the package brings: one line each, in the order in which they are listed and priced."""

from __future__ import annotations

from lnb.solvers import register
from lnb.solvers.arrow import Arrow
from lnb.solvers.automatic import Automatic
from lnb.solvers.cholesky import Cholesky
from lnb.solvers.conjugate_gradients import ConjugateGradients
from lnb.solvers.dual import Dual
from lnb.solvers.matrix_free import MatrixFree

for _solver in (Automatic(), ConjugateGradients(), Cholesky(), Arrow(), MatrixFree(), Dual()):
    register(_solver)
