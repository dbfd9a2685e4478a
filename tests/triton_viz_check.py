"""Run one kernel under triton-viz's sanitizer, which decides by a solver whether any access can be out of bounds.

    TRITON_INTERPRET=1 python tests/triton_viz_check.py pcg_product_kernel

Prints ``clean`` if none can be; the sanitizer exits with status 1 and a report otherwise. It models three of the kernels: the
others use operations that it does not know (square tiles transposed for ``tl.dot``, branches on quotients). All of them
are covered by ``triton_sanitizer.py``, address by address.
"""

from __future__ import annotations

import importlib
import sys

import torch
import triton
import triton.language as tl
import triton_viz
from triton_viz.clients import Sanitizer
from triton_viz.core import patch


@triton.jit
def careless_kernel(x_ptr, n):
    lane = tl.arange(0, 8)
    tl.store(x_ptr + lane, tl.load(x_ptr + lane, mask=lane < n, other=0.0), mask=lane <= n)


def traced(kernel: object) -> object:
    return triton_viz.trace(client=Sanitizer(abort_on_error=True))(kernel)


def main(name: str) -> None:
    cov, pcg, phases, vectors = (
        importlib.import_module(f"lnb_kernels.{module}")  # by path: the packages' names are those of functions too
        for module in ("cov_matvec.triton_kernel", "pcg.triton_kernel", "pcg.triton_phases", "pcg.triton_vectors")
    )
    # triton-viz rewrites loops of all that a kernel calls, but tells only the kernel's own module of what they call then.
    vectors.__dict__["_triton_viz_loop_patcher"] = patch._loop_patcher
    if name == "careless_kernel":
        traced(careless_kernel)[(1,)](torch.zeros(5), 5)
    elif name == "finish_kernel":
        cov.finish_kernel = traced(cov.finish_kernel)
        cov.cov_matvec(torch.randn(300, 20), torch.randn(3, 21))
    else:
        setattr(phases, name, traced(getattr(phases, name)))
        x = torch.randn(30, 8)
        g, mu, var = torch.randn(5, 8), torch.zeros(7), torch.ones(7)
        pcg.pcg(x.t() @ x, g, torch.randn(5, 8), mu, var, 2, 0.1, "layer", 2)
    print("clean")


if __name__ == "__main__":
    main(sys.argv[1])
