"""Kernels for Linear Neuron Boosting: second moments, products with them, solves, and whole-model updates.

Every function works on any device through plain PyTorch; Triton and native kernels take over where they run.
:func:`report` says which serves each op here, and why.
"""

from __future__ import annotations

import importlib
from typing import Any

from lnb_kernels._backend import get_backend, set_backend

__version__ = "0.1.0"

_HOMES = {
    "arrow_solve": "lnb_kernels.arrow.op",
    "conv2d": "lnb_kernels.conv2d.op",
    "conv2d_cov_matvec": "lnb_kernels.cov_matvec.op",
    "conv2d_second_moment": "lnb_kernels.second_moment.op",
    "cov_matvec": "lnb_kernels.cov_matvec.op",
    "linear": "lnb_kernels.linear.op",
    "pcg": "lnb_kernels.pcg.op",
    "second_moment": "lnb_kernels.second_moment.op",
}

__all__ = ["get_backend", "set_backend", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
