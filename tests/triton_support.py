"""Where the tests of Triton kernels run: on a GPU if there is one, else in the (repaired) interpreter.

Import this before any kernel: Triton reads ``TRITON_INTERPRET`` when a kernel is defined.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import triton_interpreter

if DEVICE == "cpu":
    triton_interpreter.install()

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)


def assert_as_accurate(
    actual: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, what: str = "result", factor: float = 2.0, ulps: float = 4.0
) -> None:
    """The error of ``actual`` against the float64 ``truth`` is at most ``factor`` times that of ``plain`` PyTorch.

    Errors are relative to the size of ``truth`` as a whole (Frobenius norm). A few units of roundoff of the output are
    allowed (``ulps``) in any case: where plain PyTorch happens to be exact, the order of additions may still differ.
    """
    assert actual.shape == truth.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert bool(torch.isfinite(actual).all()), f"{what}: not finite, so some element was not written"
    size = truth.norm().clamp(min=1e-30)
    error = ((actual.double() - truth).norm() / size).item()
    allowed = factor * ((plain.double() - truth).norm() / size).item() + ulps * torch.finfo(actual.dtype).eps
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same matrix in every memory layout a kernel may meet."""
    wide = torch.full((x.shape[0], 2 * x.shape[1] + 3), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, 1 : 1 + x.shape[1]] = x
    spread = torch.full((2 * x.shape[0], x.shape[1]), float("nan"), dtype=x.dtype, device=x.device)
    spread[::2] = x
    return {"contiguous": x, "transposed": x.t().contiguous().t(), "slice": wide[:, 1 : 1 + x.shape[1]], "steps": spread[::2]}


def in_float64(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    """``function`` of the arguments in float64: the truth."""
    return function(*(value.double() for value in args))
