"""Kernels for Linear Neuron Boosting: second moments, products with them, solves, and whole-model updates.

Every function works on any device through plain PyTorch; Triton and native kernels take over where they run.
:func:`report` says which serves each op here, and why.
"""

from __future__ import annotations

from lnb_kernels import fused_step as fused_step  # for report(), which lists its ops
from lnb_kernels import multi_tensor
from lnb_kernels._backend import get_backend, set_backend
from lnb_kernels._report import report
from lnb_kernels._triton.precision import set_input_precision

# Functions share names with the packages they live in: these imports bind the functions over the packages, which
# stay reachable by `from lnb_kernels.<op> import ...`.
from lnb_kernels.arrow.op import arrow_solve
from lnb_kernels.conv2d.layer import conv2d
from lnb_kernels.conv2d.op import conv2d_cov_matvec, conv2d_second_moment
from lnb_kernels.cov_matvec.op import cov_matvec
from lnb_kernels.linear.op import linear
from lnb_kernels.moment_stream import set_moment_stream
from lnb_kernels.newton_schulz.op import newton_schulz, newton_schulz_root
from lnb_kernels.pcg.layers import pcg_layers
from lnb_kernels.pcg.op import pcg
from lnb_kernels.second_moment.op import second_moment
from lnb_kernels.spd_inverse.op import spd_inverse
from lnb_kernels.two_sided.op import two_sided_directions_

__version__ = "0.2.0"

__all__ = [
    "arrow_solve",
    "conv2d",
    "conv2d_cov_matvec",
    "conv2d_second_moment",
    "cov_matvec",
    "get_backend",
    "linear",
    "multi_tensor",
    "newton_schulz",
    "newton_schulz_root",
    "pcg",
    "pcg_layers",
    "report",
    "second_moment",
    "set_backend",
    "set_input_precision",
    "set_moment_stream",
    "spd_inverse",
    "two_sided_directions_",
]


def __getattr__(name: str) -> object:
    """The former name of an op, with a warning."""
    if name == "balanced_directions_":
        import warnings

        warnings.warn(
            "lk.balanced_directions_ is called lk.two_sided_directions_ now", DeprecationWarning, stacklevel=2
        )
        return two_sided_directions_
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
